# SPDX-License-Identifier: Apache-2.0
"""docs/hardware.md against the rules: every recipe that a row names is one that its machine can use."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from dovetail.fingerprint import Fingerprint, RuntimeLibrary
from dovetail.rules import ModelFacts, all_rules
from tests.fakes.compiler_mesh import machine_of

PAGE = Path(__file__).parents[2] / "docs" / "hardware.md"
FOLDER = Path(__file__).parents[1] / "fingerprints"
MACHINES = {path.stem for path in FOLDER.glob("*.json")}
FACTS = ModelFacts(17, 8, 64 << 20, True, frozenset({"Conv", "Gemm", "MatMul"}), "2.13.0")
RECIPE = re.compile(r"`((?:ort|openvino|tensorrt|aoti)-[a-z0-9-]+)`")


def with_torch(machine: Fingerprint) -> Fingerprint:
    cuda = bool(machine.accelerators("nvidia_gpu"))
    library = RuntimeLibrary("2.13.0+cu130" if cuda else "2.13.0+cpu", ("cpu", "cuda") if cuda else ("cpu",))
    return replace(machine, facts=replace(machine.facts, runtimes={**machine.facts.runtimes, "torch": library}))


def offered(name: str) -> set[str]:
    """Recipes that the rules know for that machine, extra ones included."""
    machine = with_torch(machine_of(name))
    known = [rules.recipes(machine, FACTS) + rules.extra_recipes(machine, FACTS) for rules in all_rules().values()]
    return {recipe.name for recipes in known for recipe in recipes}


def rows() -> list[tuple[tuple[str, ...], set[str]]]:
    """Machines and recipes that each row of a table names."""
    found = []
    for line in PAGE.read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| target"):
            target, built = line.split("|")[1:3]
            machines = tuple(name for name in re.findall(r"`([a-z0-9.-]+)`", target) if name in MACHINES)
            found.append((machines, set(RECIPE.findall(built))))
    return found


ROWS = rows()


def test_every_checked_in_machine_has_a_row() -> None:
    assert {name for machines, _ in ROWS for name in machines} == MACHINES


@pytest.mark.parametrize(("machines", "recipes"), ROWS, ids=[",".join(names) or "none" for names, _ in ROWS])
def test_row_names_recipes_that_its_machines_can_use(machines: tuple[str, ...], recipes: set[str]) -> None:
    for machine in machines:
        assert recipes <= offered(machine), f"{machine}: {sorted(recipes - offered(machine))}"


def test_every_recipe_on_the_page_exists() -> None:
    everything = set().union(*(offered(name) for name in MACHINES))

    assert set(RECIPE.findall(PAGE.read_text())) <= everything


def test_page_names_the_self_tests_that_there_are() -> None:
    from dovetail.selftest import SUBJECTS

    line = next(line for line in PAGE.read_text().splitlines() if "--selftest onnxruntime" in line)

    assert all(subject.name in line for subject in SUBJECTS)
