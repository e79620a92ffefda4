# SPDX-License-Identifier: Apache-2.0
"""Judges a freshly built artifact against the reference: inputs, reference outputs, gate, goldens, batching.

The reference is the source model on ONNX Runtime's CPU provider, fp32, no graph optimisation, one thread. Everything is
run one sample at a time, because that is what a caller sends; whether rows may be batched is a question of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compiler_svc.backends.base import sample_feeds, spaced
from compiler_svc.intake.samples import SampleSet
from compiler_svc.intake.synthetic import synthetic_feeds
from compiler_svc.worker.build_spec import BuildSpec
from dovetail.engines import Session, SessionOptions, create_engine
from dovetail.engines.goldens import DEFAULT_COUNT, Golden, Goldens, compare_goldens, detection_output, joined_outputs
from dovetail.errors import BuildFailedError, EngineError, PreconditionError
from dovetail.gate import GateReport, policy_thresholds, run_gate, threshold_changes
from dovetail.tensor import Array, TensorSpec, bf16_to_float32

MAX_BATCH = 64
"""Largest batch that a manifest allows. Ours: beyond it a CPU gains little and the first waits for the last."""

SYNTHETIC_SAMPLES = 16
_BATCH_PROBE_ROWS = 4
_ROW_TOLERANCE = 1e-4  # of the output's range; float summation order gives some 1e-6, shared int8 ranges give 1e-2

_ORIGIN_NOTES = {
    "calibration": "judged on the calibration samples, which the build has seen: there are no validation samples",
    "synthetic": "judged on synthetic inputs only: there are no samples; push validation samples to prove more",
}

Feeds = Mapping[str, Array]


class ReferenceNotFiniteError(BuildFailedError):
    """The source model itself gives NaN or infinite values."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Inputs with the reference's outputs.

    Attributes:
        feeds: One input per sample.
        reference: The reference's outputs, in the same order.
        labels: As the policy's task wants them, one for each sample or pair, or None.
        origin: "validation", "calibration" or "synthetic".
    """

    feeds: Sequence[Feeds]
    reference: Sequence[Mapping[str, Array]]
    labels: Array | None
    origin: str


def gather_evidence(
    spec: BuildSpec, model: Path, calibration: SampleSet | None, validation: SampleSet | None
) -> Evidence:
    """Choose the gate's inputs (validation, else calibration, else synthetic ones) and run the reference on them.

    Raises:
        ReferenceNotFiniteError: The source model gives NaN or infinite values.
        PreconditionError: There are no samples and the model does not run on synthetic ones.
    """
    samples = validation or calibration
    origin = "validation" if validation else "calibration" if calibration else "synthetic"
    if samples is None:
        feeds, labels = synthetic_feeds(spec.inputs, spec.ranges, count=SYNTHETIC_SAMPLES), None
    else:
        chosen = gate_samples(samples.count, spec.max_gate_samples, spec.policy.task)
        whole = len(chosen) == samples.count  # then views will do
        arrays = samples.arrays if whole else {name: array[chosen] for name, array in samples.arrays.items()}
        feeds = list(sample_feeds(arrays, spec.inputs))
        labels = None if validation is None else _labels_of(validation, chosen)
    session = load_source(model, threads=1)
    try:
        reference = [session.run(feed) for feed in feeds]
    except EngineError as exc:
        if origin != "synthetic":
            raise
        raise PreconditionError(
            f"the model does not run on synthetic inputs, so nothing can be proven without samples: {exc};"
            " push validation samples with it"
        ) from exc
    finally:
        session.close()
    _refuse_not_finite(reference, spec.outputs, origin)
    return Evidence(feeds, reference, labels, origin)


def gate_samples(count: int, limit: int, task: str) -> list[int]:
    """Indexes of the samples that the gate uses: evenly spaced; for embeddings in whole pairs, as their labels are."""
    if task != "embedding" or count % 2:
        return spaced(count, limit)
    return [index for pair in spaced(count // 2, max(1, limit // 2)) for index in (2 * pair, 2 * pair + 1)]


def _labels_of(samples: SampleSet, chosen: Sequence[int]) -> Array | None:
    """Labels of the chosen samples; there may be one for each pair of samples (`dovetail.gate.embedding`)."""
    if samples.labels is None or len(samples.labels) == samples.count:
        return None if samples.labels is None else samples.labels[list(chosen)]
    return samples.labels[[index // 2 for index in chosen[::2]]]


def load_source(model: Path, *, threads: int) -> Session:
    """The source model as it is: the reference, and the baseline of the benchmark."""
    options = SessionOptions(threads=threads, precision="fp32", optimize=False)
    return create_engine("onnxruntime").load({"model.onnx": model}, options)


def judge(spec: BuildSpec, evidence: Evidence, actual: Sequence[Mapping[str, Array]]) -> GateReport:
    """Run the gate on what the artifact gave for the evidence's inputs, as the model's policy says.

    Without a task in the policy, a model with labels is a classifier. The report's notes say what was not judged, and
    that the inputs were not validation samples, if so.
    """
    policy = replace(spec.policy, task=spec.policy.task or ("classification" if evidence.labels is not None else ""))
    reference, candidate = joined_outputs(evidence.reference, actual, spec.outputs, policy)
    report = run_gate(
        reference,
        candidate,
        precision=spec.recipe.precision,
        policy=policy,
        labels=evidence.labels,
        datatypes={item.name: item.datatype for item in spec.outputs},
        samples=len(evidence.feeds),
    )
    note = _ORIGIN_NOTES.get(evidence.origin)
    return replace(report, notes=(note, *report.notes)) if note else report


def choose_goldens(spec: BuildSpec, evidence: Evidence, actual: Sequence[Mapping[str, Array]]) -> Goldens | None:
    """A few samples on which the artifact, as it ran here, is within the thresholds; None if there are none.

    With so few samples the tail statistics of a good artifact can miss by chance, so several evenly spaced choices are
    tried, at last the samples with the least error. The expected outputs are always the reference's own.
    """
    count = len(evidence.feeds)
    step = max(1, count // DEFAULT_COUNT)
    for offset in range(min(step, 8)):
        chosen = [(index + offset) % count for index in spaced(count, DEFAULT_COUNT)]
        if _within(spec, evidence, actual, chosen):
            return _goldens(spec, evidence, chosen)
    easiest = sorted(range(count), key=lambda index: _error(spec, evidence, actual, index))[:DEFAULT_COUNT]
    return _goldens(spec, evidence, sorted(easiest)) if _within(spec, evidence, actual, easiest) else None


def first_runs(spec: BuildSpec, evidence: Evidence) -> Goldens:
    """The first few inputs, for runs whose outputs do not matter."""
    return _goldens(spec, evidence, range(min(3, len(evidence.feeds))))


def max_batch_size(session: Session, evidence: Evidence, inputs: Sequence[TensorSpec]) -> int:
    """MAX_BATCH if rows may share a call, else 0.

    Two things are tried. The same row with other rows beside it must give the same result: dynamic quantisation fails
    this, because it takes one range for the whole batch. And rows in a batch must give what they give alone.
    """
    specs = (*inputs, *session.outputs)
    rows = [
        feed
        for feed in evidence.feeds[:_BATCH_PROBE_ROWS]
        if all(len(array) == 1 for array in feed.values() if array.ndim)
    ]
    if len(rows) < 2 or any(not spec.shape or spec.shape[0] != -1 for spec in specs):
        return 0
    try:
        batch = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        together = session.run(batch)
        disturbed = session.run({name: _disturbed(array) for name, array in batch.items()})
        alone = [session.run(row) for row in rows]
    except (EngineError, ValueError):
        return 0
    for spec in session.outputs:
        joined = np.concatenate([np.atleast_1d(run[spec.name]) for run in alone])
        output, other = together[spec.name], disturbed[spec.name]
        if output.shape != joined.shape or other.shape != output.shape:
            return 0
        if not _close(output[:1], other[:1], joined, spec) or not _close(output, joined, joined, spec, slack=100):
            return 0
    return MAX_BATCH


def _refuse_not_finite(runs: Sequence[Mapping[str, Array]], outputs: Sequence[TensorSpec], origin: str) -> None:
    for spec in outputs:
        bad = sum(1 for run in runs if not np.isfinite(_floats(run[spec.name], spec)).all())
        if bad:
            raise ReferenceNotFiniteError(
                f"the model itself gives NaN or infinite values in output {spec.name!r} on {bad} of {len(runs)}"
                f" {origin} samples (fp32, no optimisation), so nothing built from it can be proven; fix the model"
            )


def _floats(array: Array, spec: TensorSpec) -> Array:
    if spec.datatype == "BF16":
        return bf16_to_float32(array)
    return array if array.dtype.kind == "f" else np.zeros(1)


def _within(spec: BuildSpec, evidence: Evidence, actual: Sequence[Mapping[str, Array]], chosen: Sequence[int]) -> bool:
    runs = [actual[index] for index in chosen]
    return compare_goldens(_goldens(spec, evidence, chosen), runs).passed


def _error(spec: BuildSpec, evidence: Evidence, actual: Sequence[Mapping[str, Array]], index: int) -> float:
    """Mean absolute difference of one sample over its float outputs; other outputs count by disagreement."""
    total = 0.0
    for item in spec.outputs:
        expected, got = evidence.reference[index][item.name], actual[index][item.name]
        if item.datatype in ("FP16", "FP32", "FP64", "BF16"):
            total += float(np.mean(np.abs(_floats(expected, item).astype(np.float64) - _floats(got, item))))
        else:
            total += float(np.mean(expected != got))
    return total


def _goldens(spec: BuildSpec, evidence: Evidence, chosen: Sequence[int]) -> Goldens:
    runs = tuple(Golden(evidence.feeds[index], evidence.reference[index]) for index in chosen)
    precision = spec.recipe.precision
    return Goldens(
        precision,
        spec.inputs,
        spec.outputs,
        runs,
        tolerances=threshold_changes(precision, policy_thresholds(precision, spec.policy)),
        detections=detection_output(spec.policy, spec.outputs),
    )


def _disturbed(batch: Array) -> Array:
    """The same first row beside other rows: louder ones for floats, repeated ones for everything else."""
    if batch.dtype.kind == "f":
        return np.concatenate([batch[:1], batch[1:] * batch.dtype.type(8)])
    return np.concatenate([batch[:1]] * len(batch))


def _close(left: Array, right: Array, scale_of: Array, spec: TensorSpec, *, slack: float = 1.0) -> bool:
    if spec.datatype not in ("FP16", "FP32", "FP64", "BF16"):
        return bool(np.array_equal(left, right))
    values = _floats(scale_of, spec).astype(np.float64)
    span = float(values.max() - values.min()) if values.size else 0.0
    error = np.abs(_floats(left, spec).astype(np.float64) - _floats(right, spec))
    return bool(error.size == 0 or float(error.max()) <= _ROW_TOLERANCE * slack * (span or 1.0))
