# SPDX-License-Identifier: Apache-2.0
"""Runs the self-test on a private mesh: push, compile, try, serve, refuse, report; through the SDK, as a user would.

What can be tested is in `subjects`, what must be refused in `refusals`, what a node must do in `serving`. One mesh
serves all subjects; each subject has models of its own name, so that a node chooses among its artifacts only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np

from dovetail.client import AsyncClient, Build, BuildPhase, Model, PushResult
from dovetail.engines import SessionOptions, create_engine
from dovetail.engines.goldens import replay
from dovetail.errors import DovetailError
from dovetail.fingerprint import Fingerprint
from dovetail.mesh import Mesh
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts
from dovetail.selftest import serving
from dovetail.selftest.models import TestModel
from dovetail.selftest.plan_file import foreign_plan
from dovetail.selftest.refusals import accepted, refused_variants
from dovetail.selftest.report import Check, ModelReport, Outcome, RecipeRow, SubjectReport
from dovetail.selftest.subjects import Subject, recipes_for, why_left_out
from dovetail.tensor import Array

Say = Callable[[str], None]
_STRICT = frozenset({"fp32"})
"""Precisions that must pass the gate; a coarser one that the gate holds back is told, and is no fault."""


class SelfTest:
    """Tests subjects one after the other on a mesh that runs. One caller at a time."""

    def __init__(self, client: AsyncClient, mesh: Mesh, machine: Fingerprint, scratch: Path, say: Say) -> None:
        """Prepare.

        Args:
            client: Connected to the mesh.
            mesh: Its nodes order no builds by themselves.
            machine: This machine's fingerprint.
            scratch: Directory for downloads.
            say: Told about each step, for people who wait.
        """
        self._client = client
        self._mesh = mesh
        self._machine = machine
        self._scratch = scratch
        self._say = say

    async def run(self, subject: Subject, models: Sequence[TestModel]) -> SubjectReport:
        """Test one subject with all models; what goes wrong is in the report."""
        started = time.monotonic()
        reports = [await self._guarded(subject, model) for model in models]
        return SubjectReport(subject.name, models=tuple(reports), seconds=round(time.monotonic() - started, 1))

    async def _guarded(self, subject: Subject, model: TestModel) -> ModelReport:
        try:
            return await self._test(subject, model)
        except DovetailError as exc:
            return ModelReport(model.name, checks=(Check("the test runs to its end", False, str(exc)),))

    async def _test(self, subject: Subject, model: TestModel) -> ModelReport:
        name = f"{subject.name}-{model.name}"
        self._say(f"{name}: pushing")
        pushed = await self._push(name, model)
        facts = _facts(pushed.model)
        rows: list[RecipeRow] = []
        own: dict[str, Array] = {}
        checks: list[Check] = []
        recipes: list[Recipe] = []
        for recipe in recipes_for(subject, self._machine, facts):
            if reason := why_left_out(recipe, self._machine, facts):
                rows.append(_row(recipe, None, Outcome.LEFT_OUT, reason))
            else:
                recipes.append(recipe)
        builds = await self._compile(name, recipes) if recipes else {}
        for recipe in recipes:
            row, answers, found = await self._try(name, recipe, builds.get(recipe.name), model)
            rows.append(row)
            own |= answers
            checks += found
        if own:
            self._say(f"{name}: serving")
            where = (self._client, self._mesh, name, model.probe, own, self._machine)
            checks += await serving.served_like(*where)
            checks.append(await serving.damage_survived(*where))
        return ModelReport(model.name, tuple(rows), tuple(checks))

    async def _push(self, name: str, model: TestModel) -> PushResult:
        if model.bundle is not None:
            return await self._client.push_bundle(model.bundle, name=name)
        return await self._client.push(
            name, model.path, calibration=model.calibration, validation=model.validation, task=model.task
        )

    async def _compile(self, name: str, recipes: Sequence[Recipe]) -> dict[str, Build]:
        """Recipe name -> the last state of its build."""
        found: dict[str, Build] = {}
        events = self._client.compile(name, recipes=[recipe.name for recipe in recipes], fingerprint=self._machine)
        async with aclosing(events):
            async for event in events:
                found[event.build.recipe.name] = event.build
                self._say(f"{name}: {event.build.recipe.name} {event.build.phase}")
        return found

    async def _try(
        self, name: str, recipe: Recipe, build: Build | None, model: TestModel
    ) -> tuple[RecipeRow, dict[str, Array], list[Check]]:
        """One recipe's row; its artifact's own answers by key; and what was checked with it."""
        if build is None or build.phase is not BuildPhase.READY:
            return _unbuilt(recipe, build), {}, []
        self._say(f"{name}: trying {recipe.name}")
        into = self._scratch / build.artifact_key
        artifact = await self._client.manifest(build.artifact_key)
        files = await self._client.download(build.artifact_key, into)
        manifest = artifact.manifest
        models = {entry.name: files[entry.name] for entry in manifest.files if entry.role == "model"}
        goldens = next(files[entry.name] for entry in manifest.files if entry.role == "goldens")
        library = self._machine.runtime(manifest.contract.engine)
        options = SessionOptions.of_contract(
            manifest.contract, threads=self._machine.facts.usable_cores,
            cpu_features=self._machine.facts.cpu_features, library=library.details if library else None,
        )  # fmt: skip
        checks = [accepted(manifest, self._machine), *refused_variants(manifest, self._machine)]
        checks += await asyncio.to_thread(foreign_plan, models, manifest.contract, options, self._machine)
        checks = [Check(f"{recipe.name}: {item.name}", item.passed, item.detail) for item in checks]
        try:
            answers, failures = await asyncio.to_thread(
                _run, manifest.contract.engine, models, options, goldens, model.probe
            )
        except DovetailError as exc:
            return _row(recipe, build, Outcome.FAILED, f"does not run here: {exc}"), {}, checks
        if failures:
            return _row(recipe, build, Outcome.FAILED, f"goldens failed: {failures}"), {}, checks
        return _row(recipe, build, Outcome.OK, "", goldens=True), {build.artifact_key: answers}, checks


def _run(
    engine: str, files: Mapping[str, Path], options: SessionOptions, goldens: Path, probe: Mapping[str, Array]
) -> tuple[Array, str]:
    """The artifact's own answers, sample by sample, and why its goldens failed ("" if they did not). Blocks."""
    session = create_engine(engine).load(files, options)
    try:
        failures = replay(session, goldens).failures
        output = session.outputs[0].name
        count = len(next(iter(probe.values())))
        runs = [
            session.run({name: array[index : index + 1] for name, array in probe.items()})[output]
            for index in range(count)
        ]
        return np.concatenate(runs), "; ".join(failures[:3])
    finally:
        session.close()


def _unbuilt(recipe: Recipe, build: Build | None) -> RecipeRow:
    if build is None:
        return _row(recipe, None, Outcome.FAILED, "no build was reported")
    failure = build.failure
    if failure is not None and failure.code == "gate_missed" and recipe.precision not in _STRICT:
        return _row(recipe, build, Outcome.HELD_BACK, failure.message)
    return _row(recipe, build, Outcome.FAILED, failure.message if failure else f"{build.phase}: {build.message}")


def _row(recipe: Recipe, build: Build | None, outcome: Outcome, detail: str, *, goldens: bool = False) -> RecipeRow:
    return RecipeRow(
        recipe=recipe.name,
        engine=recipe.engine,
        device=recipe.device,
        precision=recipe.precision,
        outcome=outcome,
        detail=detail,
        size_bytes=build.size_bytes if build else 0,
        gate=build.gate.to_json() if build and build.gate else None,
        benchmark=build.benchmark.to_json() if build and build.benchmark else None,
        goldens=goldens,
    )


def _facts(model: Model) -> ModelFacts:
    return ModelFacts(
        opset=model.opset,
        ir_version=model.ir_version,
        parameter_bytes=model.parameter_bytes,
        has_calibration=model.calibration_samples > 0,
        operators=frozenset(model.operators),
        program=getattr(model, "program", ""),
    )
