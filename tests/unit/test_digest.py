# SPDX-License-Identifier: Apache-2.0
"""Digests, canonical JSON and names."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.digest import canonical_json, check_digest, check_name, digest_of, sha256_file, sha256_hex, sha256_stream
from dovetail.errors import InvalidInputError

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON_VALUES)
def test_canonical_json_is_stable_under_reading_and_writing(value: object) -> None:
    once = canonical_json(value)

    assert canonical_json(json.loads(once)) == once


def test_digest_does_not_depend_on_the_order_of_fields() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of({"a": 1, "b": 2}) != digest_of({"a": 2, "b": 1})


def test_canonical_json_refuses_what_json_does_not_have() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_file_stream_and_memory_agree(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    path = tmp_path / "data"
    path.write_bytes(data)

    assert sha256_file(path) == sha256_hex(data) == sha256_stream([data[:1000], data[1000:]])


@pytest.mark.parametrize("name", ["a", "digits", "resnet-50.v2_int8", "0" * 128])
def test_names_of_the_documented_form_are_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "-a", ".hidden", "../etc", "a/b", "a b", "é", "a\n", "0" * 129])
def test_other_names_are_refused_with_the_rule_in_the_message(name: str) -> None:
    with pytest.raises(InvalidInputError, match="start with a letter or digit"):
        check_name(name, "model name")


@pytest.mark.parametrize("text", ["", "ab", "G" * 64, "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n"])
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="64 lower-case hex digits"):
        check_digest(text)
