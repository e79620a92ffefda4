# SPDX-License-Identifier: Apache-2.0
"""`dovetail doctor --selftest` for real: one model through a private mesh, by the parts that the command is made of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dovetail.cli.demo.assets import digits_folder
from dovetail.client import connect_async
from dovetail.mesh import FREE_PORTS, Mesh, MeshOptions
from dovetail.probe import measure
from dovetail.selftest import SUBJECTS, SelfTest
from dovetail.selftest.models import make_models
from dovetail.selftest.report import Outcome

pytestmark = pytest.mark.timeout(300)


async def test_block_is_built_gated_measured_served_and_damage_is_survived(tmp_path: Path) -> None:
    machine = await measure()
    (subject,) = (item for item in SUBJECTS if item.name == "onnxruntime")
    block = make_models(tmp_path / "work", digits_folder())[1]
    environ = {**os.environ, "DOVETAIL_ORDER_BUILDS": "0", "DOVETAIL_MEASURE": "0"}
    steps: list[str] = []

    async with (
        Mesh(MeshOptions(tmp_path / "mesh", environ, ports=FREE_PORTS)) as mesh,
        connect_async(mesh.compiler_address) as client,
    ):
        report = await SelfTest(client, mesh, machine, tmp_path / "work", steps.append).run(subject, [block])

    (model,) = report.models
    rows = {row.recipe: row for row in model.rows}
    checks = {check.name: check for check in model.checks}
    assert report.passed, [check for check in model.checks if not check.passed]
    assert rows["ort-fp32"].outcome is Outcome.OK
    assert rows["ort-fp32"].goldens
    assert rows["ort-fp32"].benchmark
    assert checks["a damaged file is not loaded"].detail.endswith("the file was fetched anew; then equal")
    assert {"runtime serves and answers like its artifact", "agent serves and answers like its artifact"} <= set(checks)
    assert checks["ort-fp32: refused: a graph of a future opset"].passed
    assert any("serving" in step for step in steps)
