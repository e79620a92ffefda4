# SPDX-License-Identifier: Apache-2.0
"""Holds a graph against the module that it was exported from, by the outputs that the exporter recorded of the module.

Everybody is told to compare an exported graph with its module, and nearly nobody does; so it is done here again, by the
service itself, on the graph that it is about to keep, and a graph that is another function is refused with figures.
The native module itself is not needed, and nothing of torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from compiler_svc.intake.equivalence import on_cpu
from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.sample_file import read_arrays
from dovetail.errors import DovetailError, InvalidInputError
from dovetail.program.agreement import ExportFigures, export_figures
from dovetail.program.reference import MAX_EXAMPLES, input_key, output_key
from dovetail.tensor import NUMPY_DTYPES, Array, TensorSpec

_WHAT = "reference"
_NAMED = 4  # problems in a message

Example = tuple[Mapping[str, Array], Mapping[str, Array]]
"""Inputs, and what the native module answered."""


def check_export(
    model: Path,
    reference: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    limits: ModelLimits,
    *,
    exported_by: str,
) -> ExportFigures:
    """Run the graph on the recorded examples and compare.

    Args:
        model: The graph as it will be kept.
        reference: The .npz, see `dovetail.program.reference`.
        inputs: Signature.
        outputs: Signature.
        limits: `sample_bytes` bounds the reference.
        exported_by: For the figures.

    Raises:
        InvalidInputError: The graph is not the module's, or the reference does not fit it; the text names the outputs.
        OverLimitError: The reference is larger than allowed.
    """
    examples = read_reference(reference, inputs, outputs, limits)
    answers = [_answer(model, feeds) for feeds, _ in examples]
    figures = export_figures([native for _, native in examples], answers, outputs, exported_by=exported_by)
    if figures.problems:
        more = len(figures.problems) - _NAMED
        raise InvalidInputError(
            f"the graph is not the module that it was exported from: {'; '.join(figures.problems[:_NAMED])}"
            f"{f' and {more} more' if more > 0 else ''}. Export the module again, and push what comes out unchanged"
        )
    return figures


def read_reference(
    path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], limits: ModelLimits
) -> list[Example]:
    """The examples of a reference file, the user's own first.

    Raises:
        InvalidInputError: Not an .npz, or arrays are missing or do not fit the signature.
        OverLimitError: It unpacks to too many bytes.
    """
    numbers = range(1, MAX_EXAMPLES + 1)
    wanted = [input_key(number, spec.name) for number in numbers for spec in inputs]
    wanted += [output_key(number, spec.name) for number in numbers for spec in outputs]
    stored = read_arrays(path, wanted, limits, _WHAT)
    examples: list[Example] = []
    for number in numbers:
        if number > 1 and not any(input_key(number, spec.name) in stored for spec in inputs):
            break
        feeds = {spec.name: _input(stored, input_key(number, spec.name), spec) for spec in inputs}
        native = {spec.name: _array(stored, output_key(number, spec.name)) for spec in outputs}
        examples.append((feeds, native))
    return examples


def _array(stored: Mapping[str, Array], key: str) -> Array:
    if key not in stored:
        raise InvalidInputError(
            f"the reference file has no array {key!r}; it must hold inputs and outputs of the graph that is pushed"
        )
    return stored[key]


def _input(stored: Mapping[str, Array], key: str, spec: TensorSpec) -> Array:
    array = _array(stored, key)
    if array.dtype != NUMPY_DTYPES[spec.datatype] or not spec.accepts(array.shape):
        raise InvalidInputError(
            f"array {key!r} of the reference file is {array.dtype} {list(array.shape)}; the graph's input is"
            f" {spec.datatype} {list(spec.shape)}: it is not the reference of this graph"
        )
    return array


def _answer(model: Path, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    try:
        session = on_cpu(model)()
        try:
            return session.run(feeds)
        finally:
            session.close()
    except DovetailError as exc:
        raise InvalidInputError(f"the graph does not run on an example of its module's: {exc}") from exc
