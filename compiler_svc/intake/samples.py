# SPDX-License-Identifier: Apache-2.0
"""Reads calibration and validation samples (.npz) and holds them against the model's signature.

A sample file has one array for each model input; its first axis is the sample. There are two ways to write an input of
shape (batch, 1, 8, 8): an array (samples, 1, 8, 8), whose rows are samples, or (samples, n, 1, 8, 8), whose elements
are whole inputs. The second is the only way for inputs without a free first axis. Labels are one integer per sample.

How the file is read, never more than once into memory, is `sample_file`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.sample_file import read_arrays
from dovetail.digest import digest_of, sha256_stream
from dovetail.errors import InvalidInputError, OverLimitError
from dovetail.gate import check_labels
from dovetail.ranges import DimRange, outside
from dovetail.tensor import NUMPY_DTYPES, Array, TensorSpec, to_raw

_PART_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class SampleSet:
    """Samples that fit a signature.

    Attributes:
        arrays: Input name -> array whose first axis is the sample.
        labels: As the task wants them (`dovetail.gate.check_labels`), int64 array (samples,) for classes; or None.
        count: Samples.
        digests: One for each sample, in order; equal samples have equal ones.
        digest: Of all samples in order, labels included.
    """

    arrays: Mapping[str, Array]
    labels: Array | None
    count: int
    digests: tuple[str, ...]
    digest: str


def load_samples(
    path: Path,
    inputs: Sequence[TensorSpec],
    limits: ModelLimits,
    *,
    what: str,
    label_array: str = "",
    labels_needed: bool = False,
    task: str = "",
    ranges: Sequence[DimRange] = (),
) -> SampleSet:
    """Read a sample file.

    Args:
        path: The .npz file.
        inputs: Signature to hold it against.
        limits: `sample_bytes` and `samples` apply.
        what: "calibration" or "validation", for messages.
        label_array: Name of the label array; "" reads none. It may be absent, unless:
        labels_needed: True refuses a file without it.
        task: As in AccuracyPolicy; says what labels look like.
        ranges: Declared sizes of free dimensions, which every sample must keep.

    Returns:
        The samples; arrays that the file stores uncompressed are mapped from it, so it must stay where it is.

    Raises:
        InvalidInputError: Not an .npz, or arrays do not fit the signature or the ranges.
        OverLimitError: It unpacks to too many bytes or holds too many samples.
    """
    wanted = [spec.name for spec in inputs] + ([label_array] if label_array else [])
    stored = read_arrays(path, wanted, limits, what)
    arrays: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for spec in inputs:
        if spec.name not in stored:
            raise InvalidInputError(f"the {what} file has no array {spec.name!r}, which is an input of the model")
        arrays[spec.name] = _checked(stored[spec.name], spec, what)
        counts[spec.name] = len(arrays[spec.name])
        _refuse_outside(arrays[spec.name], spec, ranges, what)
    if len(set(counts.values())) != 1:
        raise InvalidInputError(f"the arrays of the {what} file have different numbers of samples: {counts}")
    count = next(iter(counts.values()))
    if count == 0:
        raise InvalidInputError(f"the {what} file holds no sample")
    if count > limits.samples:
        raise OverLimitError(f"the {what} file holds {count} samples, the limit of this service is {limits.samples}")
    if labels_needed and label_array not in stored:
        raise InvalidInputError(f"the {what} file has no array {label_array!r}, which is named as its label array")
    labels = _labels(stored[label_array], count, task) if label_array in stored else None
    digests = _sample_digests(arrays, inputs, count)
    return SampleSet(arrays, labels, count, digests, _set_digest(inputs, digests, labels))


def refuse_overlap(calibration: SampleSet, validation: SampleSet) -> None:
    """Make sure that no sample is used both to build and to judge.

    Raises:
        InvalidInputError: Some are.
    """
    seen = {digest: index for index, digest in reversed(list(enumerate(validation.digests)))}
    shared = [(index, seen[digest]) for index, digest in enumerate(calibration.digests) if digest in seen]
    if shared:
        raise InvalidInputError(
            f"{len(shared)} of {calibration.count} calibration samples are also validation samples (calibration"
            f" {shared[0][0]} is validation {shared[0][1]}); the gate would judge by what the build saw. Split them"
        )


def refuse_impossible_labels(validation: SampleSet, outputs: Sequence[TensorSpec]) -> None:
    """Make sure that every label can be an answer of the model; with one that cannot, accuracy would say nothing.

    Args:
        validation: Labelled or not.
        outputs: Of the model. The classes are the last axis of the first one if it holds scores.

    Raises:
        InvalidInputError: A label is no class of the model.
    """
    scores = outputs[0]
    if validation.labels is None or not scores.shape or NUMPY_DTYPES[scores.datatype].kind != "f":
        return
    classes = scores.shape[-1]
    wrong = (validation.labels < 0) | ((validation.labels >= classes) if classes > 0 else False)
    if wrong.any():
        first = int(np.argmax(wrong))
        known = f"0 to {classes - 1}" if classes > 0 else "0 and larger"
        raise InvalidInputError(
            f"{int(wrong.sum())} of {validation.count} labels of the validation file are no class of the model (label"
            f" {first} is {int(validation.labels[first])}); output {scores.name!r} has the classes {known}. Correct"
            " them, or push with --task generic to judge without labels"
        )


def _checked(array: Array, spec: TensorSpec, what: str) -> Array:
    array = _as_datatype(array, spec, what)
    rank = len(spec.shape)
    by_row = rank > 0 and spec.shape[0] in (-1, 1)
    fits_row = by_row and array.ndim == rank and spec.accepts((spec.shape[0], *array.shape[1:]))
    if not fits_row and not (array.ndim == rank + 1 and spec.accepts(array.shape[1:])):
        wanted = spec.shape[1:] if by_row else spec.shape
        raise InvalidInputError(
            f"array {spec.name!r} of the {what} file has shape {list(array.shape)}; the input is {list(spec.shape)},"
            f" so an array of samples is [samples, {', '.join(str(dim) for dim in wanted)}]"
        )
    if array.dtype.kind == "f" and not all(np.isfinite(part).all() for part in _parts(array)):
        raise InvalidInputError(f"array {spec.name!r} of the {what} file holds NaN or infinite values")
    return array


def _parts(array: Array) -> Iterator[Array]:
    """Views of some samples each, so that checking them needs no second array of the whole size."""
    rows = max(1, _PART_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def _refuse_outside(array: Array, spec: TensorSpec, ranges: Sequence[DimRange], what: str) -> None:
    """Samples of one array have one shape, so the first stands for all."""
    whole = array.ndim == len(spec.shape) + 1
    shape = array.shape[1:] if whole else (1, *array.shape[1:])
    broken = outside(shape, spec.name, ranges)
    if broken is not None and len(array):
        raise InvalidInputError(
            f"sample 0 of the {what} file has size {shape[broken.axis]} in axis {broken.axis} of input {spec.name!r};"
            f" the declared range is {broken.min} to {broken.max} (all {len(array)} samples have that size)"
        )


def _as_datatype(array: Array, spec: TensorSpec, what: str) -> Array:
    wanted = NUMPY_DTYPES[spec.datatype]
    if spec.datatype == "BYTES" and array.dtype.kind in "SU":
        texts = np.empty(array.shape, dtype=object)
        for index, element in np.ndenumerate(array):
            texts[index] = element.encode() if isinstance(element, str) else bytes(element)
        return texts
    if array.dtype.newbyteorder("<") != wanted:
        raise InvalidInputError(
            f"array {spec.name!r} of the {what} file has dtype {array.dtype}; the input is {spec.datatype} ({wanted})"
        )
    return np.ascontiguousarray(array, dtype=wanted)


def _labels(array: Array, count: int, task: str) -> Array:
    check_labels(array, task, count)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInputError("the label array of the validation file holds NaN or infinite values")
    return array.reshape(-1).astype(np.int64) if task in ("", "classification", "generic") else array


def _labels_document(labels: Array | None) -> object:
    """What of the labels is in the set's digest: class ids as they are, other labels by their bytes."""
    if labels is None or labels.dtype.kind in "iu":
        return [] if labels is None else [int(label) for label in labels.reshape(-1)]
    return [list(labels.shape), sha256_stream([labels.astype("<f8").tobytes()])]


def _sample_digests(arrays: Mapping[str, Array], inputs: Sequence[TensorSpec], count: int) -> tuple[str, ...]:
    specs = sorted(inputs, key=lambda spec: spec.name)
    return tuple(
        sha256_stream(to_raw(arrays[spec.name][index : index + 1], spec.datatype) for spec in specs)
        for index in range(count)
    )


def _set_digest(inputs: Sequence[TensorSpec], digests: Sequence[str], labels: Array | None) -> str:
    return digest_of(
        {
            "inputs": sorted([spec.name, spec.datatype] for spec in inputs),
            "samples": list(digests),
            "labels": _labels_document(labels),
        }
    )
