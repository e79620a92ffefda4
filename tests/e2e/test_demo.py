# SPDX-License-Identifier: Apache-2.0
"""`dovetail demo` as `make demo` runs it: what it claims, and that nothing of it is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(400)

RECIPES = {"ort-fp32", "ort-int8-dynamic", "openvino-fp32", "openvino-fp16"}
"""Recipes that every x86 machine builds; the int8 flavours depend on its CPU."""


def test_the_demo_holds_what_it_claims_and_leaves_nothing_behind(tmp_path: Path) -> None:
    environ = {**os.environ, "TMPDIR": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-m", "dovetail.cli", "demo", "--json"],
        capture_output=True, text=True, timeout=360, check=False, env=environ, cwd=tmp_path,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    recipes = {row["recipe"] for row in report["artifacts"]}
    assert recipes > RECIPES
    assert len(recipes) == 6
    for row in report["artifacts"]:
        assert row["rejected"] == (row["rank"] == 0)
        assert row["reason"] if row["rejected"] else row["gate"]["passed"]
    assert {(row["node"], row["rpc"]) for row in report["served"]} == {
        (node, rpc) for node in ("runtime", "agent") for rpc in ("ModelInfer", "ModelStreamInfer")
    }
    assert all(row["accuracy"] == row["own"] > 0.97 for row in report["served"])
    assert report["offline"]["accuracy"] > 0.97
    machines = {row["machine"]: row for row in report["other_machines"]}
    assert "tensorrt-fp16" in machines["jetson-orin-nx"]["build_orders"]
    assert any("library" in reason for reason in machines["raspberry-pi-4"]["refused"]["openvino-fp32"])
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
