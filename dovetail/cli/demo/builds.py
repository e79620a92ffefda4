# SPDX-License-Identifier: Apache-2.0
"""First half of the demo: push a model, measure the machine, build everything, and compare what came out."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np

from dovetail.cli.artifact_table import ArtifactRow, artifact_table, rows_of
from dovetail.cli.build_progress import BuildProgress
from dovetail.cli.demo.assets import digits_folder
from dovetail.cli.demo.stage import MODEL, DemoError, Stage
from dovetail.cli.fingerprint_view import fingerprint_panel
from dovetail.cli.output import short_key, size_text, time_text
from dovetail.client import Artifact, Build, BuildPhase
from dovetail.engines import SessionOptions, create_engine
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.tensor import Array


async def push(stage: Stage) -> None:
    """Push the digits net with calibration samples and labelled validation samples."""
    folder = digits_folder()
    result = await stage.client.push(
        MODEL,
        folder / "digits.onnx",
        calibration=folder / "calibration.npz",
        validation=folder / "validation.npz",
        task="classification",
    )
    model = result.model
    stage.say(
        f"{model.name} version {model.version}: {size_text(model.size_bytes)}, opset {model.opset}, "
        f"{model.calibration_samples} calibration and {model.validation_samples} labelled validation samples, "
        f"digest {short_key(model.model_digest)}"
    )
    for note in result.notes:
        stage.say(f"  intake: {note}")
    stage.report["model"] = {"name": model.name, "version": model.version, "digest": model.model_digest}


def show_machine(stage: Stage) -> None:
    """Show what this machine measured about itself."""
    stage.console.print(fingerprint_panel(stage.fingerprint))
    found = hardware_class(stage.fingerprint)
    stage.report["hardware_class"] = {"key": found.key, "label": found.label, "isa_class": found.isa_class}


async def compile_all(stage: Stage) -> tuple[Build, ...]:
    """Build every recipe that this machine can use, with live progress."""
    events = stage.client.compile(MODEL, fingerprint=stage.fingerprint)
    with BuildProgress(stage.console) as progress:
        async with aclosing(events):
            async for event in events:
                progress.update(event)
    builds = tuple(progress.builds.values())
    if not any(build.phase is BuildPhase.READY for build in builds):
        raise DemoError("no recipe gave an artifact; see the reasons above")
    return builds


async def compare(stage: Stage, builds: Sequence[Build]) -> Mapping[str, Array]:
    """Print the table, and return what each artifact itself predicts for the held-out digits.

    Returns:
        Artifact key -> int64 predictions (n,).
    """
    artifacts = await stage.client.artifacts(MODEL)
    predictions = {}
    with tempfile.TemporaryDirectory(prefix="dovetail-demo-") as scratch:
        for number, artifact in enumerate(artifacts):
            into = Path(scratch, str(number))
            await asyncio.to_thread(into.mkdir)
            files = await stage.client.download(artifact.manifest.artifact_key, into)
            predictions[artifact.manifest.artifact_key] = await asyncio.to_thread(
                _predict, artifact, files, stage.fingerprint, stage.data.image
            )
    accuracy = {key: float(np.mean(found == stage.data.label)) for key, found in predictions.items()}
    offer = await stage.client.negotiate(MODEL, stage.fingerprint)
    rows = rows_of(builds=builds, artifacts=artifacts, offer=offer, accuracy=accuracy)
    stage.console.print(artifact_table(rows))
    stage.say(
        f"accuracy on {len(stage.data.label)} held-out digits (gate's, on validation samples, for what was rejected); "
        f"speed-up against the unoptimised fp32 model in the same run ({_baseline_text(rows)}), batch 1"
    )
    stage.report["artifacts"] = [_row_json(row) for row in rows]
    return predictions


def _predict(artifact: Artifact, files: Mapping[str, Path], machine: Fingerprint, images: Array) -> Array:
    """Run the artifact here, outside any service, one digit at a time."""
    manifest = artifact.manifest
    facts = machine.facts
    options = SessionOptions.of_contract(manifest.contract, threads=facts.usable_cores, cpu_features=facts.cpu_features)
    models = {entry.name: files[entry.name] for entry in manifest.files if entry.role == "model"}
    session = create_engine(manifest.contract.engine).load(models, options)
    try:
        name, output = manifest.inputs[0].name, manifest.outputs[0].name
        return np.array([int(session.run({name: images[i : i + 1]})[output].argmax()) for i in range(len(images))])
    finally:
        session.close()


def _row_json(row: ArtifactRow) -> dict[str, object]:
    return {
        "recipe": row.recipe.name,
        "artifact_key": row.artifact_key,
        "engine": row.recipe.engine,
        "precision": row.recipe.precision,
        "size_bytes": row.size_bytes,
        "accuracy": row.accuracy,
        "gate": row.gate.to_json() if row.gate else None,
        "benchmark": row.benchmark.to_json() if row.benchmark else None,
        "speedup": row.benchmark.speedup if row.benchmark else None,
        "verdict": row.verdict.name if row.verdict is not None else None,
        "rank": row.rank,
        "rejected": row.rejected,
        "reason": row.reason,
    }


def _baseline_text(rows: Sequence[ArtifactRow]) -> str:
    """Range of the baseline's medians over the runs."""
    found = [row.benchmark.baseline_p50_ms for row in rows if row.benchmark]
    return f"p50 {time_text(min(found))} to {time_text(max(found))} ms" if found else "not measured"
