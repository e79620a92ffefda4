# SPDX-License-Identifier: Apache-2.0
"""The fingerprint document: what is written can be read, and what is not a fingerprint is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.errors import InvalidInputError
from dovetail.fingerprint import (
    MAX_DOCUMENT_BYTES,
    Accelerator,
    ClassFacts,
    Fingerprint,
    InstanceFacts,
    RuntimeLibrary,
)

_text = st.text(max_size=12)
_count = st.integers(min_value=0, max_value=1 << 50)
_strings = st.dictionaries(_text, _text, max_size=3)
_accelerators = st.builds(
    Accelerator,
    kind=_text,
    product=_text,
    compute_capability=_text,
    multiprocessors=_count,
    memory_bytes=_count,
    unified_memory=st.booleans(),
)
_libraries = st.builds(RuntimeLibrary, version=_text, devices=st.lists(_text, max_size=3).map(tuple), details=_strings)
_fingerprints = st.builds(
    Fingerprint,
    facts=st.builds(
        ClassFacts,
        arch=_text,
        cpu_features=st.frozensets(_text, max_size=5),
        cpu_parts=st.lists(_text, max_size=3).map(tuple),
        usable_cores=_count,
        memory_bytes=_count,
        accelerators=st.lists(_accelerators, max_size=2).map(tuple),
        runtimes=st.dictionaries(_text, _libraries, max_size=2),
    ),
    instance=st.builds(
        InstanceFacts,
        hostname=_text,
        product=_text,
        device_memory_free_bytes=st.lists(_count, max_size=2).map(tuple),
        absent=_strings,
        sources=_strings,
    ),
    origin=_text,
)


def document(**changes: Any) -> dict[str, Any]:
    return {"schema": 1, "class": {"arch": "x86_64", **changes}}


@given(_fingerprints)
def test_what_is_written_is_read_back_equal(fingerprint: Fingerprint) -> None:
    assert Fingerprint.from_bytes(fingerprint.to_bytes()) == fingerprint
    assert Fingerprint.from_json(json.loads(json.dumps(fingerprint.to_json()))) == fingerprint


def test_unknown_fields_of_a_newer_minor_version_are_ignored() -> None:
    read = Fingerprint.from_json({**document(), "extra": 1, "instance": {"hostname": "a", "moon_phase": "full"}})

    assert read.facts.arch == "x86_64"
    assert read.instance.hostname == "a"


@pytest.mark.parametrize("schema", [None, 0, 2, "1"])
def test_another_schema_is_refused_by_its_number(schema: object) -> None:
    with pytest.raises(InvalidInputError, match="schema"):
        Fingerprint.from_json({**document(), "schema": schema})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"usable_cores": "many"}, "usable_cores"),
        ({"usable_cores": -1}, "usable_cores"),
        ({"memory_bytes": 1.5}, "memory_bytes"),
        ({"memory_bytes": True}, "memory_bytes"),
        ({"cpu_features": "avx2"}, "cpu_features"),
        ({"cpu_features": [1]}, "cpu_features"),
        ({"cpu_parts": [None]}, "cpu_parts"),
        ({"arch": 64}, "arch"),
        ({"runtimes": {"onnxruntime": {"version": 1}}}, "version"),
        ({"runtimes": {"onnxruntime": {"version": "1", "details": {"a": 1}}}}, "details"),
        ({"runtimes": {"onnxruntime": {"version": "1", "devices": "CPU"}}}, "devices"),
        ({"accelerators": [{"kind": "nvidia_gpu", "unified_memory": "yes"}]}, "unified_memory"),
        ({"accelerators": {"kind": "nvidia_gpu"}}, "accelerators"),
    ],
)
def test_a_field_of_the_wrong_type_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        Fingerprint.from_json(document(**changes))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"schema": 1}', "class"),
        (b'{"schema": 1, "class": {}}', "arch"),
        (b'{"schema": 1, "class": 3}', "not readable"),
        (b" " * (MAX_DOCUMENT_BYTES + 1), "at most"),
    ],
)
def test_bytes_that_are_no_fingerprint_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        Fingerprint.from_bytes(data)


def test_accelerators_and_runtimes_are_found_by_kind_and_name() -> None:
    gpu, npu = Accelerator("nvidia_gpu"), Accelerator("intel_npu")
    library = RuntimeLibrary("1.0")
    fingerprint = Fingerprint(ClassFacts("x86_64", accelerators=(gpu, npu), runtimes={"onnxruntime": library}))

    assert fingerprint.accelerators("intel_npu") == (npu,)
    assert fingerprint.runtime("onnxruntime") is library
    assert fingerprint.runtime("openvino") is None
