# SPDX-License-Identifier: Apache-2.0
"""Takes in an exported program (.pt2): rewritten without pickles, and converted to ONNX where it comes alone.

Runs in the confined child only. The archive is checked and rewritten first, so that torch never sees what was pushed
but only what is left of it (`dovetail.program.archive` says what that is, and why it is still not harmless).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler_svc.intake.equivalence import on_cpu
from compiler_svc.intake.limits import PROGRAM_FILE, FleetTarget, ModelLimits
from compiler_svc.intake.model_intake import Draft
from compiler_svc.intake.samples import SampleSet
from compiler_svc.intake.trial_inputs import trial_inputs
from dovetail.engines import Session
from dovetail.errors import EngineError, InvalidInputError
from dovetail.program.agreement import export_figures
from dovetail.program.archive import rewrite
from dovetail.ranges import DimRange
from dovetail.tensor import Array

CONVERTED_FILE = "converted.onnx"


@dataclass(frozen=True, slots=True)
class TakenProgram:
    """A program that may be kept.

    Attributes:
        path: Its rewritten archive.
        release: torch release that exported it.
        notes: What was changed.
    """

    path: Path
    release: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Converted:
    """The graph of a program that was pushed alone.

    Attributes:
        model: The .onnx file.
        external: Its external data, as `read_model` takes it.
        ranges: Sizes of free dimensions that the program allows, where they are bounded.
        session: Runs the program itself.
        note: Which tools converted it.
    """

    model: Path
    external: Mapping[str, Path]
    ranges: tuple[DimRange, ...]
    session: Session
    note: str


def take_program(path: Path, limits: ModelLimits, out_dir: Path) -> TakenProgram:
    """Check and rewrite an archive.

    Raises:
        InvalidInputError: No program, or one that holds pickles.
        OverLimitError: Over a limit.
        UnsupportedError: A form of the archive that is not known here.
    """
    kept = out_dir / PROGRAM_FILE
    facts = rewrite(path, kept, max_bytes=limits.external_bytes)
    left_out = f", left out: {', '.join(facts.left_out)}" if facts.left_out else ""
    return TakenProgram(kept, facts.release, (f"program of torch {facts.release}{left_out}",))


def convert(program: TakenProgram, target: FleetTarget, scratch: Path) -> Converted:
    """Convert a program to ONNX with the torch that is installed here.

    Args:
        program: It.
        target: Newest stamps that the fleet loads.
        scratch: Directory of our own for the file.

    Raises:
        InvalidInputError: torch cannot open it.
        UnsupportedError: torch is not installed here, or ONNX has no form for some operators; the text names all.
    """
    from dovetail.program.loading import ProgramSession, load_program
    from dovetail.program.naming import program_ranges
    from dovetail.program.onnx_form import tools, write_onnx

    loaded = load_program(program.path)
    form = write_onnx(loaded, scratch / CONVERTED_FILE, opset=target.opset)
    external = {path.name: path for path in scratch.glob(f"{CONVERTED_FILE}.*")}
    session = ProgramSession(loaded, form)
    return Converted(form.path, external, program_ranges(loaded), session, f"converted by {tools()}")


def with_ranges(converted: Converted, declared: Sequence[DimRange]) -> tuple[DimRange, ...]:
    """The declared ranges, and the program's own where nothing is declared."""
    taken = {(item.input, item.axis) for item in declared}
    return (*declared, *(item for item in converted.ranges if (item.input, item.axis) not in taken))


def prove(converted: Converted, draft: Draft, samples: SampleSet | None) -> str:
    """Show that the converted graph computes what the program does; a note that says how it ended.

    Raises:
        InvalidInputError: It computes something else.
    """
    feeds, native = _runs(converted.session, draft, samples)
    if not feeds:
        return (
            f"{converted.note}, not compared: the program runs on no input that could be made up; push samples with it"
        )
    session = on_cpu(converted.model)()
    try:
        answers = [session.run(feed) for feed in feeds]
    finally:
        session.close()
    figures = export_figures(native, answers, draft.outputs)
    if figures.problems:
        raise InvalidInputError(
            f"the ONNX form of the program ({converted.note}) computes something else: {figures.problems[0]}. Export"
            " the module with dovetail.export, which says more"
        )
    return f"{converted.note}, same results as the program: SNR {figures.snr_db:.1f} dB on {figures.samples} inputs"


def _runs(
    program: Session, draft: Draft, samples: SampleSet | None
) -> tuple[list[Mapping[str, Array]], list[Mapping[str, Array]]]:
    """Of each group of alternative inputs the first on which the program runs, and what it answers."""
    feeds: list[Mapping[str, Array]] = []
    native: list[Mapping[str, Array]] = []
    for group in trial_inputs(draft.inputs, draft.ranges, samples):
        for feed in group:
            try:
                native.append(program.run(feed))
            except EngineError:  # sizes or values that it does not take
                continue
            feeds.append(feed)
            break
    return feeds, native
