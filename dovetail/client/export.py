# SPDX-License-Identifier: Apache-2.0
"""`dovetail.export`: from a torch module in memory to a bundle that `dovetail push` takes.

What lives here: the order of the steps and what comes back. Capturing and its errors are in `export_capture`, running
the module in `export_native`, the folder in `export_bundle`; what the service shares is `dovetail.program`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.accuracy import AccuracyPolicy
from dovetail.client.push import UNNAMED_LABELS
from dovetail.client.samples import Samples
from dovetail.digest import check_name
from dovetail.errors import EngineError, InvalidInputError, UnsupportedError
from dovetail.gate import check_tolerances
from dovetail.program.agreement import ExportFigures, export_figures
from dovetail.ranges import DimRange
from dovetail.tensor import TensorSpec

if TYPE_CHECKING:
    from dovetail.client.export_native import Example
    from dovetail.program.onnx_form import OnnxForm

OPSET = 21
"""Newest opset that the oldest runtimes of a fleet load; a service with another one converts."""

_NAMED = 4  # problems in a message


@dataclass(frozen=True, slots=True)
class Exported:
    """A bundle that was written.

    Attributes:
        path: Its folder; `dovetail push PATH`, or `client.push_bundle(exported.path)`.
        name: Name that it will be pushed under.
        figures: How far the ONNX graph is from the module, on the example inputs and on them in other sizes.
        inputs: Signature.
        outputs: Signature.
        ranges: Sizes of free dimensions, from dynamic_shapes.
        notes: What to know: sizes that could not be tried, dimensions without an upper bound.
    """

    path: Path
    name: str
    figures: ExportFigures
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: tuple[DimRange, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.path}: {self.figures.text}"


def export(
    module: Any,
    example_inputs: Any,
    *,
    dynamic_shapes: Any = None,
    name: str = "",
    path: Path | str | None = None,
    output_names: Sequence[str] = (),
    calibration: Samples | None = None,
    validation: Samples | None = None,
    policy: AccuracyPolicy = UNNAMED_LABELS,
    opset: int = OPSET,
    overwrite: bool = False,
) -> Exported:
    """Export a torch module to a bundle, and show that the graph computes what the module does. Blocks.

    Captures with torch.export, converts to ONNX, runs both on the examples, and writes the folder only if they agree:
    `dovetail.yaml`, `model.onnx`, `program.pt2`, `reference.npz` and the samples.

    Args:
        module: A torch.nn.Module in evaluation mode, on the CPU, whose inputs and outputs are tensors (also in tuples,
            lists and dicts).
        example_inputs: Tuple of the arguments of its forward, a mapping of their names, or one tensor. Batches of two
            rows or more: torch takes a size of 1 for a constant.
        dynamic_shapes: As torch.export.export takes it: {"x": {0: torch.export.Dim("batch", min=1, max=32)}}; bounds
            become the declared ranges. None: all sizes are fixed.
        name: Model name; default: the module's class in lower case.
        path: Folder to write; default: the name, in the working directory.
        output_names: Instead of "output", "output_0" … or the keys of what the module returns.
        calibration: Samples for int8: .npz, folder or iterable, see `dovetail.client.samples`.
        validation: The same for the accuracy gate, with labels if there are any.
        policy: How accuracy is judged.
        opset: Of ai.onnx.
        overwrite: Replace a bundle that is there.

    Raises:
        InvalidInputError: The module is in training mode, its examples do not run, dynamic_shapes do not fit, or an
            argument is wrong.
        UnsupportedError: torch is not installed; or the module cannot be captured, ONNX has no form for a part of it,
            or the graph computes something else: the text says where, and with which figures.
        AlreadyExistsError: The folder is there.
    """
    from dovetail.client.export_bundle import BundleParts, new_bundle
    from dovetail.client.export_capture import capture, save_program
    from dovetail.client.export_native import NativeModule, unbounded
    from dovetail.program.naming import program_ranges
    from dovetail.program.onnx_form import write_onnx

    native = NativeModule(module, example_inputs)
    chosen = check_name(name or type(module).__name__.lower(), "model name")
    check_tolerances(policy)
    target = Path(path) if path is not None else Path(chosen)
    with new_bundle(target, overwrite=overwrite) as folder:
        native.settle()
        program = capture(native, dynamic_shapes)
        form = write_onnx(program, folder / "model.onnx", opset=opset, names=output_names)
        examples, notes = native.examples(program, form)
        figures, inputs, outputs = compared(form, examples)
        ranges = program_ranges(program, native.usual_sizes(program))
        notes += unbounded(program, ranges)
        save_program(program, folder / "program.pt2")
        BundleParts(chosen, form, examples, ranges, calibration, validation, policy).write(folder)
    return Exported(target, chosen, figures, inputs, outputs, ranges, tuple(notes))


def compared(
    form: OnnxForm, examples: Sequence[Example]
) -> tuple[ExportFigures, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """How far the graph is from the module, run as the service's reference is: ONNX Runtime, fp32, not optimised.

    Raises:
        UnsupportedError: The graph is another function, or ONNX Runtime is not installed.
    """
    from dovetail.engines import SessionOptions, create_engine
    from dovetail.program.onnx_form import tools

    options = SessionOptions(threads=1, precision="fp32", optimize=False)
    try:
        session = create_engine("onnxruntime").load({"model.onnx": form.path}, options)
    except EngineError as exc:
        raise UnsupportedError(
            f"ONNX Runtime, which gives the reference, does not load the module's ONNX form: {exc}. Export the module"
            " in float32; lower precisions are chosen when it is compiled"
        ) from exc
    try:
        answers = [session.run(example.inputs) for example in examples]
    except (EngineError, InvalidInputError) as exc:
        raise UnsupportedError(
            f"the ONNX form of the module does not run on the examples, or not in another size: {exc}. A size may have"
            " become a constant; declare fewer dynamic_shapes"
        ) from exc
    finally:
        session.close()
    native = [example.outputs for example in examples]
    figures = export_figures(native, answers, session.outputs, exported_by=tools())
    if figures.problems:
        more = len(figures.problems) - _NAMED
        raise UnsupportedError(
            f"the ONNX form computes something else than the module: {'; '.join(figures.problems[:_NAMED])}"
            f"{f' and {more} more' if more > 0 else ''}; {figures.text}"
        )
    return figures, session.inputs, session.outputs
