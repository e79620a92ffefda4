# SPDX-License-Identifier: Apache-2.0
"""Tables, panels and numbers: what is shown, at which width, and into which group an artifact falls."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from dovetail.benchmark import BenchmarkRecord
from dovetail.cli.artifact_table import ArtifactRow, artifact_table, rows_of
from dovetail.cli.build_progress import BuildProgress
from dovetail.cli.doctor import check_engine
from dovetail.cli.fingerprint_view import fingerprint_panel
from dovetail.cli.offer_view import group_offer, offer_panel, reason_text
from dovetail.cli.output import age_text, rate_text, shape_text, size_text, time_text
from dovetail.client import (
    Artifact,
    AssessedArtifact,
    Build,
    BuildEvent,
    BuildFailure,
    BuildOrder,
    BuildPhase,
    Objective,
    Offer,
)
from dovetail.fingerprint import ClassFacts, Fingerprint, RuntimeLibrary
from dovetail.gate import GateReport, OutputComparison
from dovetail.mesh.capabilities import BuildCapability
from dovetail.recipe import Recipe
from dovetail.rules import Reason, Verdict
from tests.fakes.tiny_artifacts import manifest_of

ORT = Recipe("ort-fp32", "onnxruntime", "cpu", "fp32")
STATIC = Recipe("ort-int8-static-u8s8-rr", "onnxruntime", "cpu", "int8")
VINO = Recipe("openvino-int8-ofix", "openvino", "cpu", "int8")
GATE = GateReport(True, "int8", 256, (OutputComparison("logits", 0.9998, 38.1, 0.002, 0.01, 0.03),), 1.0)


def figures(p50_ms: float) -> BenchmarkRecord:
    return BenchmarkRecord("here", 1, 2, 100, 3, True, p50_ms, p50_ms, 2 * p50_ms, 1000 / p50_ms, 3.0, 0, 1.0)


def shown(view: RenderableType, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def offer_of(*assessments: AssessedArtifact, better: tuple[BuildOrder, ...] = (), basis: str = "measured") -> Offer:
    return Offer("digits", 1, "class-key", "a machine", "", "", assessments, better, basis, Objective.LATENCY)


ROWS = (
    ArtifactRow(STATIC, "a" * 64, 443_000, 0.9922, GATE, figures(0.34), Verdict.OPTIMAL, 1),
    ArtifactRow(ORT, "b" * 64, 1_640_000, 0.9922, GATE, figures(0.62), Verdict.SUBOPTIMAL, 2),
    ArtifactRow(
        VINO, "c" * 64, 443_000, 0.91, GATE, rejected=True, reason="gate_missed: SNR is 11.1 dB, allowed is 20"
    ),
)


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_no_line_of_the_artifact_table_is_wider_than_the_terminal_and_no_row_or_reason_is_lost(width: int) -> None:
    text = shown(artifact_table(ROWS, title="digits"), width)

    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    for word in (STATIC.name, ORT.name, VINO.name, "OPTIMAL", "SUBOPTIMAL", "REJECTED", "0.340", "2.94x", "99.22%"):
        assert word in text
    assert "gate_missed: SNR is 11.1 dB, allowed is 20" in text


def test_a_wide_artifact_table_has_every_figure() -> None:
    text = shown(artifact_table(ROWS))

    for word in ("aaaaaaaaaaaa", "onnxruntime", "433 KiB", "38.1", "0.999800", "100.00%", "0.680", "2941", "pass"):
        assert word in text


def test_a_reason_stands_right_under_its_row() -> None:
    rejected, reason = shown(artifact_table(ROWS)).splitlines()[-2:]

    assert VINO.name in rejected
    assert reason.strip().startswith("└ gate_missed")


def test_recipes_that_were_not_tried_are_named_below_the_table_and_take_no_row() -> None:
    skipped = [
        Build(name[0] * 64, "digits", 1, replace(STATIC, name=name), phase=BuildPhase.CANCELLED, message="budget over")
        for name in ("b-recipe", "a-recipe")
    ]

    *table, last = shown(artifact_table([*ROWS, *rows_of(builds=skipped)])).splitlines()

    assert last == "not built (cancelled: budget over): a-recipe, b-recipe"
    assert "REJECTED" in table[-2]
    assert not any("-recipe" in line for line in table)


def test_rows_put_the_offered_first_in_rank_order_and_the_failed_last_with_the_reason() -> None:
    failed = Build("c" * 64, "digits", 1, VINO, phase=BuildPhase.FAILED)
    failed = Build(
        "c" * 64, "digits", 1, VINO, phase=BuildPhase.FAILED, failure=BuildFailure("deterministic", "crash", "it died")
    )
    refused = Reason("R5", Verdict.RECOMPILE, "VNNI", "AVX2", "build rr")
    offer = offer_of(
        AssessedArtifact("d" * 64, STATIC, Verdict.RECOMPILE, (refused,)),
        AssessedArtifact("b" * 64, ORT, Verdict.SUBOPTIMAL, rank=2, gate=GATE),
        AssessedArtifact("a" * 64, STATIC, Verdict.OPTIMAL, rank=1, gate=GATE),
    )

    rows = rows_of(builds=[failed], offer=offer, accuracy={"a" * 64: 0.5})

    assert [row.artifact_key[0] for row in rows] == ["a", "b", "c", "d"]
    assert [row.rejected for row in rows] == [False, False, True, True]
    assert rows[0].accuracy == 0.5
    assert rows[2].reason == "crash: it died"
    assert rows[3].reason == str(refused)


def test_an_offer_is_shown_in_four_groups() -> None:
    low = Reason("memory", Verdict.UNSUPPORTED, "2.1 GiB", "1.4 GiB free", "lower max_batch to 8")
    wrong = Reason("R5", Verdict.RECOMPILE, "VNNI", "AVX2", "build the reduced-range flavour")
    offer = offer_of(
        AssessedArtifact("a" * 64, ORT, Verdict.OPTIMAL, rank=1, measured=True, benchmark=figures(0.5)),
        AssessedArtifact("b" * 64, VINO, Verdict.UNSUPPORTED, (low,)),
        AssessedArtifact("c" * 64, STATIC, Verdict.RECOMPILE, (wrong, low)),
        better=(BuildOrder("", STATIC, None, "2 times as fast", "a worker on aarch64"),),
    )

    groups, text = group_offer(offer), shown(offer_panel(offer))

    assert [item.artifact_key[0] for item in groups.offered] == ["a"]
    assert [item.artifact_key[0] for item in groups.low_memory] == ["b"]
    assert [item.artifact_key[0] for item in groups.incompatible] == ["c"]
    positions = [
        text.index(title)
        for title in ("Offered, best first", "too little memory is free", "Incompatible here", "Would be better")
    ]
    assert positions == sorted(positions)
    for part in ("p50 0.500 ms", "2.00x", "needs VNNI, has AVX2 → build the reduced-range", "a worker on aarch64"):
        assert part in text


def test_an_unmeasured_order_is_called_an_expectation() -> None:
    offer = offer_of(AssessedArtifact("a" * 64, ORT, Verdict.OPTIMAL, rank=1, prior_speed=1.4), basis="prior")

    text = shown(offer_panel(offer))

    assert "expectation, not a measurement" in text
    assert "expected about 1.4x" in text


def test_a_machine_that_gets_nothing_is_told_so() -> None:
    assert "Nothing that is built fits this machine yet" in shown(offer_panel(offer_of()))


def test_text_from_outside_is_never_read_as_markup() -> None:
    reason = Reason("R1", Verdict.UNSUPPORTED, "[bold]x[/bold]", "[/red]", "")

    assert reason_text(reason) in shown(
        offer_panel(offer_of(AssessedArtifact("a" * 64, ORT, reason.verdict, (reason,))))
    )


def test_a_fingerprint_that_was_not_measured_says_where_it_is_from() -> None:
    machine = Fingerprint(
        ClassFacts(
            arch="aarch64",
            usable_cores=4,
            cpu_features=frozenset({"asimddp"}),
            runtimes={"onnxruntime": RuntimeLibrary("1.31.1", ("CPUExecutionProvider",))},
        ),
        origin="public specification: a board",
    )

    text = shown(fingerprint_panel(machine, title="a board"))

    for part in ("asimddp", "4 usable", "onnxruntime 1.31.1 on CPUExecutionProvider", "public specification: a board"):
        assert part in text


def test_without_a_terminal_builds_are_told_once_for_each_change_of_phase() -> None:
    console = Console(file=io.StringIO(), width=120)
    phases = [BuildPhase.QUEUED, BuildPhase.BUILDING, BuildPhase.BUILDING, BuildPhase.READY]

    with BuildProgress(console) as progress:
        for number, phase in enumerate(phases):
            progress.update(BuildEvent(str(number), Build("a" * 64, "digits", 1, ORT, phase=phase)))

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == ["ort-fp32: queued", "ort-fp32: building", "ort-fp32: ready"]
    assert [build.phase for build in progress.builds.values()] == [BuildPhase.READY]


def test_on_a_terminal_each_build_has_a_line_that_ends_with_a_mark() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    failure = BuildFailure("deterministic", "gate_missed", "cosine is 0.9\nmore")

    with BuildProgress(console) as progress:
        progress.update(BuildEvent("1", Build("a" * 64, "digits", 1, ORT, phase=BuildPhase.READY)))
        progress.update(BuildEvent("2", Build("b" * 64, "digits", 1, VINO, phase=BuildPhase.FAILED, failure=failure)))

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "✓" in text
    assert "failed (gate_missed): cosine is 0.9" in text


def test_doctor_tells_what_is_missing_and_the_command_that_brings_it() -> None:
    bare = Fingerprint(ClassFacts(arch="x86_64"))
    full = Fingerprint(ClassFacts(arch="x86_64", runtimes={"openvino": RuntimeLibrary("2026.4.1")}))

    missing = check_engine("openvino", bare, BuildCapability({}, "nncf is not installed"))
    there = check_engine("openvino", full, BuildCapability({"nncf": "3.4"}, ""))
    later = check_engine("aotinductor", bare, None)

    assert (missing.can_run, missing.can_build, missing.install) == (False, False, "pip install 'dovetail[openvino]'")
    assert (there.can_run, there.can_build, there.install) == (True, True, "")
    assert (later.library, later.can_build) == ("torch", False)


@pytest.mark.parametrize(
    ("shown_as", "expected"),
    [
        (size_text(812), "812 B"),
        (size_text(93_500), "91.3 KiB"),
        (size_text(1_500_000_000), "1.4 GiB"),
        (time_text(0.0412), "0.0412"),
        (time_text(1.374), "1.37"),
        (time_text(148.4), "148"),
        (time_text(0), "-"),
        (rate_text(980.4), "980"),
        (rate_text(12_400), "12.4k"),
        (age_text(3_700_000), "1 h"),
        (shape_text((-1, 1, 8, 8)), "?x1x8x8"),
        (shape_text(()), "scalar"),
    ],
)
def test_numbers_read_as_people_write_them(shown_as: str, expected: str) -> None:
    assert shown_as == expected


def test_the_drop_stands_with_the_bound_that_the_samples_allow() -> None:
    gate = GateReport(
        True, "int8", 256, metric="accuracy", metric_reference=0.99, metric_candidate=0.986,
        metric_drop=0.004, metric_drop_low=-0.01, metric_drop_high=0.0193,
    )  # fmt: skip
    few = GateReport(True, "int8", 9, metric="R2", metric_reference=0.9, metric_candidate=0.9, metric_drop=0.0)

    text = shown(
        artifact_table([ArtifactRow(STATIC, accuracy=0.986, gate=gate), ArtifactRow(ORT, accuracy=0.9, gate=few)])
    )

    for word in ("drop pt", "98.60%", "0.4 ≤1.9", "R2 90.00%", "0.0 ≤?"):
        assert word in text


def test_an_artifact_that_was_judged_without_validation_samples_says_so_under_its_row() -> None:
    note = "judged on synthetic inputs only: there are no samples; push validation samples to prove more"
    manifest = manifest_of({"model.onnx": b"m", "goldens.npz": b"g"})
    old = replace(manifest, gate=GateReport(True, "fp32", 16), labels={"gate_inputs": "synthetic, 16 samples"})
    new = replace(manifest, gate=GateReport(True, "fp32", 16, notes=(note,)), labels={})
    built = Build("a" * 64, "digits", 1, ORT, phase=BuildPhase.READY, gate=GateReport(True, "fp32", 16, notes=(note,)))
    proven = replace(manifest, labels={"gate_inputs": "validation, 256 samples"})

    assert [row.reason for row in rows_of(artifacts=[Artifact(old, "")])] == ["judged on synthetic, 16 samples only"]
    assert [row.reason for row in rows_of(artifacts=[Artifact(new, "")])] == [note]
    assert [row.reason for row in rows_of(builds=[built])] == [note]
    assert [row.reason for row in rows_of(artifacts=[Artifact(proven, "")])] == [""]
