# SPDX-License-Identifier: Apache-2.0
"""The operator's leave for native code of artifacts: from a variable through the fingerprint to the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dovetail.engines.base import SessionOptions
from dovetail.probe.runtimes import LIBRARIES, OPERATOR_LEAVE, ask_libraries
from dovetail.probe.sysroot import Notes
from runtime_svc.acquire import activate
from runtime_svc.acquire.activate import Machine
from runtime_svc.acquire.instance_plan import InstancePlan
from tests.fakes.machines import contract, machine, manifest

FIRST, SECOND = "ab" * 32, "0f" * 32
HOST_CODE, PLUGINS = OPERATOR_LEAVE


@pytest.mark.parametrize(
    ("environment", "details"),
    [
        ({}, {}),
        ({HOST_CODE: "allow"}, {"host_code_allowed": "true"}),
        ({HOST_CODE: "true"}, {}),
        ({HOST_CODE: ""}, {}),
        ({PLUGINS: FIRST}, {"plugins_allowed": FIRST}),
        ({PLUGINS: f"{FIRST}=/opt/roi.so, {SECOND}"}, {"plugins_allowed": f"{FIRST},{SECOND}"}),
        ({PLUGINS: "*, all, ../x, " + "AB" * 32}, {}),
    ],
)
async def test_the_fingerprint_tells_what_the_operator_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], details: dict[str, str]
) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text("__version__ = '11.4.0.106'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in OPERATOR_LEAVE:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    found = await ask_libraries(Notes(), [library for library in LIBRARIES if library.name == "tensorrt"])

    assert found["tensorrt"].version == "11.4.0.106"
    assert {name: found["tensorrt"].details.get(name) for name in ("host_code_allowed", "plugins_allowed")} == {
        "host_code_allowed": details.get("host_code_allowed"),
        "plugins_allowed": details.get("plugins_allowed"),
    }


@pytest.mark.parametrize("leave", [{}, {"host_code_allowed": "true"}])
def test_a_node_hands_its_own_leave_to_the_engine_and_calls_nothing_its_own_build(
    monkeypatch: pytest.MonkeyPatch, leave: dict[str, str]
) -> None:
    loaded: list[SessionOptions] = []

    class Engine:
        def load(self, files: Any, options: SessionOptions) -> None:
            loaded.append(options)

    monkeypatch.setattr(activate, "create_engine", lambda name: Engine())
    claims = contract("tensorrt", "fp16", "cuda", host_code_allowed="true", own_build=True)
    stored = manifest("a", claims)
    where = machine(details={"tensorrt": leave}, tensorrt="11.4.0.106")

    files = {entry.name: Path() for entry in stored.files}
    activate._load(stored, files, Machine(where, 1, lambda: 0), InstancePlan(1, 1))

    assert dict(loaded[0].library) == leave
    assert not loaded[0].own_build


def test_leave_is_not_part_of_the_hardware_class() -> None:
    from dovetail.hardware_class import hardware_class

    without = machine(tensorrt="11.4.0.106")
    library = replace(without.facts.runtimes["tensorrt"], details={"host_code_allowed": "true"})
    with_leave = replace(without, facts=replace(without.facts, runtimes={"tensorrt": library}))

    assert hardware_class(without) == hardware_class(with_leave)
