# SPDX-License-Identifier: Apache-2.0
"""The child process: real intakes and builds, and every way a child can end badly. Nothing here is mocked."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from compiler_svc.intake.limits import ModelLimits
from compiler_svc.worker.build_spec import (
    BuildResult,
    BuildSpec,
    ChildLimits,
    IntakeOutcome,
    IntakeSpec,
    Progress,
)
from compiler_svc.worker.child import isolate_network
from compiler_svc.worker.child_failure import ChildFailure, FailureKind
from compiler_svc.worker.sandbox import run_build, run_intake, run_task
from dovetail.accuracy import AccuracyPolicy
from dovetail.contract import Contract
from dovetail.engines import SessionOptions, create_engine
from dovetail.engines.goldens import read_goldens, replay
from dovetail.errors import ErrorCode, OverLimitError, UnsupportedError
from dovetail.recipe import Recipe
from dovetail.rules import ModelFacts
from dovetail.tensor import TensorSpec
from tests.fakes.onnx_models import conv_net, elementwise, images, model_of, nan_model, save

LIMITS = ChildLimits(wall_s=120)
IMAGE, LOGITS = TensorSpec("image", "FP32", (-1, 1, 8, 8)), TensorSpec("logits", "FP32", (-1, 10))
FP32 = Recipe("ort-fp32", "onnxruntime", "cpu", "fp32", {"optimization_level": "basic"})
STATIC = Recipe(
    "ort-int8-static",
    "onnxruntime",
    "cpu",
    "int8",
    {"quantization": "static", "reduce_range": True, "int8_flavour": "static-u8s8-rr"},
    needs_calibration=True,
)
OPENVINO = Recipe("openvino-int8", "openvino", "cpu", "int8", needs_calibration=True)
DYNAMIC = Recipe("ort-int8-dynamic", "onnxruntime", "cpu", "int8", {"quantization": "dynamic"})

Say = Callable[[Progress], None]


def silent(step: Progress) -> None:
    """Progress is not of interest."""


def spec_of(recipe: Recipe, **changes: Any) -> BuildSpec:
    contract = Contract(recipe.engine, recipe.device, recipe.precision, details={"kept": "yes"})
    facts = ModelFacts(17, 8, 5000, has_calibration=True)
    spec = BuildSpec(
        recipe, contract, (IMAGE,), (LOGITS,), facts, "class-1", frozenset({"avx2"}), 1, measure_budget_s=0.2
    )
    return replace(spec, **changes)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A child's directory with a model, calibration samples, and validation samples labelled by the model itself."""
    save(conv_net(), tmp_path / "model.onnx")
    np.savez(tmp_path / "calibration.npz", image=images(32))
    session = create_engine("onnxruntime").load({"model.onnx": tmp_path / "model.onnx"}, SessionOptions(threads=1))
    validation = images(64, seed=5)
    labels = session.run({"image": validation})["logits"].argmax(axis=1)
    np.savez(tmp_path / "validation.npz", image=validation, label=labels)
    return tmp_path


def program(text: str) -> tuple[str, str]:
    """Python arguments of a child that misbehaves; sys.argv[1] is its directory."""
    return ("-c", textwrap.dedent(text))


async def run_program(directory: Path, text: str, limits: ChildLimits = LIMITS, say: Say = silent) -> Any:
    return await run_task(directory, IntakeSpec(), limits=limits, on_progress=say, threads=1, program=program(text))


def gone(pid: int) -> bool:
    """True if the process ended; a zombie that nobody has reaped yet counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] in ("Z", "X")
    except OSError:
        return True


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while not gone(pid):
            await asyncio.sleep(0.01)


# --- intake ---------------------------------------------------------------------------------------------------------


async def test_intake_gives_a_normalised_model_and_facts_of_the_samples(directory: Path) -> None:
    steps: list[Progress] = []
    spec = IntakeSpec(calibration_file="calibration.npz", validation_file="validation.npz")

    outcome = await run_intake(directory, spec, limits=LIMITS, on_progress=steps.append)

    assert isinstance(outcome, IntakeOutcome), outcome
    assert outcome.model == directory / "out" / "model.onnx"
    assert (outcome.inputs, outcome.outputs) == ((IMAGE,), (LOGITS,))
    assert (outcome.calibration.count, outcome.calibration.labelled) == (32, False)
    assert (outcome.validation.count, outcome.validation.labelled) == (64, True)
    assert len(outcome.model_digest) == 64
    assert [step.phase for step in steps] == ["intake"] * len(steps)
    assert steps[-1].fraction == 1.0


async def test_intake_packs_external_data_under_names_of_our_own(directory: Path) -> None:
    import onnx

    inside = await run_intake(directory, IntakeSpec(), limits=LIMITS, on_progress=silent)
    onnx.save(conv_net(), str(directory / "e.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    (directory / "w.bin").rename(directory / "external-0")

    spec = IntakeSpec(model_file="e.onnx", external_files={"w.bin": "external-0"})
    outcome = await run_intake(directory, spec, limits=LIMITS, on_progress=silent)

    assert isinstance(inside, IntakeOutcome)
    assert isinstance(outcome, IntakeOutcome), outcome
    assert outcome.model_digest == inside.model_digest
    assert outcome.notes == ("6 tensors packed from external data",)


@pytest.mark.parametrize(
    ("content", "limits", "error", "text"),
    [
        (b"nonsense", ModelLimits(), ErrorCode.INVALID_INPUT, "not an ONNX file"),
        (conv_net().SerializeToString()[:900], ModelLimits(), ErrorCode.INVALID_INPUT, "truncated"),
        (conv_net().SerializeToString(), ModelLimits(nodes=2), ErrorCode.OVER_LIMIT, "more than 2 nodes"),
        (elementwise("Nope").SerializeToString(), ModelLimits(), ErrorCode.UNSUPPORTED, "no operator Nope"),
    ],
)
async def test_refused_model_is_a_deterministic_failure_with_our_own_error(
    directory: Path, content: bytes, limits: ModelLimits, error: ErrorCode, text: str
) -> None:
    (directory / "model.onnx").write_bytes(content)

    outcome = await run_intake(directory, IntakeSpec(limits=limits), limits=LIMITS, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert (outcome.kind, outcome.error, outcome.code) == (FailureKind.DETERMINISTIC, error, error.value)
    assert text in outcome.message
    assert str(directory) not in outcome.message + outcome.log_tail


@pytest.mark.parametrize(
    ("task", "array", "text"),
    [("", "", "no class of the model"), ("generic", "", ""), ("", "truth", "no array 'truth'")],
)
async def test_labels_are_held_against_the_model(directory: Path, task: str, array: str, text: str) -> None:
    np.savez(directory / "validation.npz", image=images(4), label=np.full(4, 10))
    spec = IntakeSpec(validation_file="validation.npz", label_array=array, task=task)

    outcome = await run_intake(directory, spec, limits=LIMITS, on_progress=silent)

    if text:
        assert isinstance(outcome, ChildFailure)
        assert text in outcome.message
    else:
        assert isinstance(outcome, IntakeOutcome), outcome


def test_failures_become_the_matching_exception() -> None:
    failure = ChildFailure(FailureKind.DETERMINISTIC, "unsupported", "no such operator", error=ErrorCode.UNSUPPORTED)

    assert isinstance(failure.to_error(), UnsupportedError)
    assert str(failure.to_error()) == "no such operator"
    assert isinstance(replace(failure, error=ErrorCode.OVER_LIMIT).to_error(), OverLimitError)


async def test_overlapping_samples_are_refused(directory: Path) -> None:
    spec = IntakeSpec(calibration_file="validation.npz", validation_file="validation.npz")

    outcome = await run_intake(directory, spec, limits=LIMITS, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert "64 of 64 calibration samples are also validation samples" in outcome.message


# --- build ----------------------------------------------------------------------------------------------------------


async def test_build_gives_files_gate_figures_and_goldens_that_replay(directory: Path) -> None:
    steps: list[Progress] = []
    spec = spec_of(STATIC, calibration_file="calibration.npz", validation_file="validation.npz")

    result = await run_build(directory, spec, limits=LIMITS, on_progress=steps.append)

    assert isinstance(result, BuildResult), result
    assert result.gate.passed
    assert (result.gate.samples, result.gate.metric, result.gate.metric_reference) == (64, "accuracy", 1.0)
    assert result.benchmarks[0].p50_ms > 0
    assert result.benchmarks[0].baseline_p50_ms > 0
    assert result.benchmarks[0].windows >= 3
    assert result.benchmarks[0].hardware_class == "class-1"
    assert result.contract.min_memory_bytes >= result.benchmarks[0].peak_rss_bytes > 0
    assert result.contract.details["kept"] == "yes"
    assert result.labels["calibration"] == "minmax, 32 samples"
    assert result.labels["gate_inputs"] == "validation, 64 samples"
    assert result.max_batch_size == 64
    assert {"onnxruntime", "onnx"} <= result.toolchain.keys()
    assert [step.phase for step in steps][-1] == "measuring"
    assert [step.fraction for step in steps] == sorted(step.fraction for step in steps)
    files = {file.name: file for file in result.files}
    session = create_engine("onnxruntime").load({"model.onnx": files["model.onnx"].path}, SessionOptions(threads=1))
    assert replay(session, files["goldens.npz"].path).passed
    assert read_goldens(files["goldens.npz"].path).precision == "int8"
    assert files["goldens.npz"].role == "goldens"


async def test_equal_orders_give_equal_files(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    spec = spec_of(STATIC, calibration_file="calibration.npz", validation_file="validation.npz")
    digests = []
    for _ in range(2):
        copy = tmp_path_factory.mktemp("child")
        for name in ("model.onnx", "calibration.npz", "validation.npz"):
            (copy / name).write_bytes((directory / name).read_bytes())
        result = await run_build(copy, spec, limits=LIMITS, on_progress=silent)
        assert isinstance(result, BuildResult), result
        digests.append({file.name: file.digest for file in result.files})

    assert digests[0] == digests[1]


async def test_rows_that_influence_each_other_are_never_batched(directory: Path) -> None:
    spec = spec_of(DYNAMIC, validation_file="validation.npz", policy=AccuracyPolicy(max_metric_drop=1.0))

    result = await run_build(directory, spec, limits=LIMITS, on_progress=silent)

    assert isinstance(result, BuildResult), result
    assert result.max_batch_size == 0
    assert result.labels["calibration"] == "uncalibrated"


async def test_model_with_a_fixed_batch_is_never_batched(directory: Path) -> None:
    save(conv_net(batch=1), directory / "model.onnx")
    fixed = {"inputs": (replace(IMAGE, shape=(1, 1, 8, 8)),), "outputs": (replace(LOGITS, shape=(1, 10)),)}

    result = await run_build(
        directory, spec_of(FP32, validation_file="validation.npz", **fixed), limits=LIMITS, on_progress=silent
    )

    assert isinstance(result, BuildResult), result
    assert result.max_batch_size == 0


async def test_missed_gate_is_a_failure_that_still_carries_report_and_figures(directory: Path) -> None:
    labels = {"label": np.full(64, 3)}
    np.savez(directory / "validation.npz", image=images(64, seed=5) * 100, **labels)
    spec = spec_of(STATIC, calibration_file="calibration.npz", validation_file="validation.npz")

    outcome = await run_build(directory, spec, limits=LIMITS, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("gate_missed", FailureKind.DETERMINISTIC)
    assert outcome.message.startswith("ort-int8-static missed the accuracy gate: output logits")
    assert outcome.gate is not None
    assert not outcome.gate.passed
    assert outcome.benchmark is not None
    assert outcome.benchmark.p50_ms > 0
    assert outcome.size_bytes > 0
    assert outcome.labels["calibration"] == "minmax, 32 samples"


async def test_nan_producing_model_is_refused_with_its_own_code(directory: Path) -> None:
    save(nan_model(), directory / "model.onnx")
    tensors = {"inputs": (TensorSpec("x", "FP32", (-1, 2)),), "outputs": (TensorSpec("y", "FP32", (-1, 2)),)}

    outcome = await run_build(directory, spec_of(FP32, **tensors), limits=LIMITS, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("reference_not_finite", FailureKind.DETERMINISTIC)
    assert "gives NaN or infinite values in output 'y'" in outcome.message
    assert "synthetic samples" in outcome.message


async def test_static_int8_without_samples_is_refused(directory: Path) -> None:
    outcome = await run_build(directory, spec_of(STATIC), limits=LIMITS, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.error) == ("precondition", ErrorCode.PRECONDITION)
    assert "needs calibration samples" in outcome.message


async def test_engine_without_a_backend_is_refused_by_name(directory: Path) -> None:
    recipe = Recipe("plan", "tensorrt", "cuda", "fp16")

    outcome = await run_build(directory, spec_of(recipe), limits=LIMITS, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert outcome.error is ErrorCode.UNSUPPORTED
    assert "no backend for engine 'tensorrt'" in outcome.message


async def test_without_samples_the_gate_says_that_it_used_synthetic_inputs(directory: Path) -> None:
    result = await run_build(directory, spec_of(FP32), limits=LIMITS, on_progress=silent)

    assert isinstance(result, BuildResult), result
    assert result.labels["gate_inputs"] == "synthetic, 16 samples"
    assert result.gate.metric == ""


async def test_model_that_needs_real_inputs_asks_for_samples(directory: Path) -> None:
    value = helper.make_tensor_value_info
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    save(model_of([node], [value("x", 1, ["n"]), value("shape", 7, [2])], [value("y", 1, [None, None])]),
         directory / "model.onnx")  # fmt: skip
    tensors = {
        "inputs": (TensorSpec("x", "FP32", (-1,)), TensorSpec("shape", "INT64", (2,))),
        "outputs": (TensorSpec("y", "FP32", (-1, -1)),),
    }

    outcome = await run_build(directory, spec_of(FP32, **tensors), limits=LIMITS, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert outcome.error is ErrorCode.PRECONDITION
    assert "push validation samples" in outcome.message


# --- bad ends -------------------------------------------------------------------------------------------------------


async def test_crash_of_native_code_is_a_typed_failure_with_its_last_words(directory: Path) -> None:
    outcome = await run_program(
        directory, "import os, sys; print('last words', file=sys.stderr, flush=True); os.abort()"
    )

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("crash", FailureKind.DETERMINISTIC)
    assert "SIGABRT" in outcome.message
    assert "last words" in outcome.log_tail


async def test_segfault_names_the_phase_it_happened_in(directory: Path) -> None:
    outcome = await run_program(
        directory,
        """
        import ctypes
        print('{"phase": "gating", "fraction": 0.5, "message": "m"}', flush=True)
        ctypes.string_at(0)
        """,
    )

    assert isinstance(outcome, ChildFailure)
    assert "crashed while gating (SIGSEGV)" in outcome.message


async def test_hanging_child_is_killed_with_all_it_started(directory: Path) -> None:
    text = """
        import subprocess, sys, time
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print('{"phase": "building", "fraction": 0.1, "message": "%d"}' % grandchild.pid, flush=True)
        time.sleep(600)
    """
    steps: list[Progress] = []

    outcome = await run_program(directory, text, ChildLimits(wall_s=2), steps.append)

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("timeout", FailureKind.RESOURCE)
    assert "not done within 2 s; it was killed while building" in outcome.message
    await until_gone(int(steps[0].message))


async def test_cancelled_task_leaves_no_process(directory: Path) -> None:
    started = asyncio.Event()
    pids: list[int] = []

    def note(step: Progress) -> None:
        pids.append(int(step.message))
        started.set()

    text = """
        import os, time
        print('{"phase": "building", "fraction": 0.1, "message": "%d"}' % os.getpid(), flush=True)
        time.sleep(600)
    """
    task = asyncio.create_task(run_program(directory, text, LIMITS, note))
    async with asyncio.timeout(20):
        await started.wait()

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert gone(pids[0])


async def test_child_dies_with_a_parent_that_was_killed(directory: Path) -> None:
    parent = f"""
        import asyncio, os, pathlib
        from compiler_svc.worker.sandbox import run_build
        from tests.integration.test_build_child import LIMITS, OPENVINO, spec_of

        def tell(step):
            children = pathlib.Path(f"/proc/{{os.getpid()}}/task/{{os.getpid()}}/children").read_text().split()
            print(*children, flush=True)

        spec = spec_of(OPENVINO, calibration_file="calibration.npz")
        asyncio.run(run_build(pathlib.Path({str(directory)!r}), spec, limits=LIMITS, on_progress=tell))
    """
    root = Path(__file__).resolve().parents[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *program(parent), stdout=asyncio.subprocess.PIPE, cwd=root
    )
    assert process.stdout is not None
    pid = int(await asyncio.wait_for(process.stdout.readline(), 30))
    assert not gone(pid)

    process.kill()
    await process.wait()

    await until_gone(pid)
    assert not (directory / "result.json").exists()


async def test_memory_bomb_is_a_resource_failure(directory: Path) -> None:
    text = """
        from compiler_svc.worker.child import apply_limits
        apply_limits({"cpu_s": 60, "memory_bytes": 300 << 20, "file_bytes": 1 << 20, "open_files": 64, "processes": 0})
        bytearray(1 << 30)
    """

    outcome = await run_program(directory, text)

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("out_of_memory", FailureKind.RESOURCE)
    assert "memory_bytes" in outcome.message


async def test_real_build_with_too_little_memory_is_a_resource_failure(directory: Path) -> None:
    limits = replace(LIMITS, memory_bytes=120 << 20)

    outcome = await run_build(directory, spec_of(FP32), limits=limits, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("out_of_memory", FailureKind.RESOURCE), outcome


async def test_real_build_over_its_cpu_time_is_a_resource_failure(directory: Path) -> None:
    limits = replace(LIMITS, cpu_s=1)

    outcome = await run_build(
        directory, spec_of(OPENVINO, calibration_file="calibration.npz"), limits=limits, on_progress=silent
    )

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("cpu_limit", FailureKind.RESOURCE), outcome


async def test_file_over_the_limit_is_a_resource_failure(directory: Path) -> None:
    limits = replace(LIMITS, file_bytes=2000)

    outcome = await run_build(directory, spec_of(FP32), limits=limits, on_progress=silent)

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("file_too_large", FailureKind.RESOURCE), outcome


async def test_kill_by_the_kernel_is_taken_for_lack_of_memory(directory: Path) -> None:
    outcome = await run_program(directory, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("out_of_memory", FailureKind.RESOURCE)


async def test_stop_from_outside_is_infrastructure(directory: Path) -> None:
    outcome = await run_program(directory, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("killed", FailureKind.INFRASTRUCTURE)


@pytest.mark.parametrize(
    "result",
    [
        "",
        "not json",
        "[]",
        '{"build": {}}',
        '{"intake": {"model_digest": 1}}',
        '{"failure": {"kind": "no such kind"}}',
        json.dumps({"build": {"files": [{"name": "x", "role": "model", "file": "../spec.json"}]}}),
    ],
)
async def test_nonsense_from_a_child_is_an_infrastructure_failure(directory: Path, result: str) -> None:
    outcome = await run_program(directory, f"open('result.json', 'w').write({result!r})")

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("no_result", FailureKind.INFRASTRUCTURE)


async def test_links_in_a_childs_output_are_not_followed(directory: Path) -> None:
    text = """
        import os
        os.mkdir("out"); os.symlink("/etc/hostname", "out/model.onnx")
        open("result.json", "w").write('{"intake": {}}')
    """

    outcome = await run_program(directory, text)

    assert isinstance(outcome, ChildFailure)
    assert outcome.code == "no_result"


async def test_noise_between_progress_lines_is_skipped(directory: Path) -> None:
    steps: list[Progress] = []
    text = """
        print("noise"); print("x" * 300_000); print('{"phase": 1}')
        print('{"phase": "building", "fraction": 7, "message": "m"}', flush=True)
    """

    await run_program(directory, text, LIMITS, steps.append)

    assert steps == [Progress("building", 1.0, "m")]


async def test_log_tail_is_short_and_names_no_directory(directory: Path) -> None:
    text = f"""
        import sys
        sys.stderr.write("x" * 100_000 + {str(directory)!r} + sys.prefix + " the end")
        sys.exit(3)
    """

    outcome = await run_program(directory, text)

    assert isinstance(outcome, ChildFailure)
    assert len(outcome.log_tail.encode()) <= 4096
    assert outcome.log_tail.endswith("the end")
    assert str(directory) not in outcome.log_tail
    assert sys.prefix not in outcome.log_tail


async def test_child_sees_nothing_of_the_parents_environment(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid")

    outcome = await run_program(directory, "import os, sys; sys.exit(str(dict(os.environ)))")

    assert isinstance(outcome, ChildFailure)
    assert "s3cret" not in outcome.log_tail
    assert "proxy" not in outcome.log_tail
    assert "'HOME': '<build>/home'" in outcome.log_tail


def test_isolated_process_cannot_reach_the_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        pid = os.fork()
        if pid == 0:  # the child only isolates itself, tries, and leaves
            status = 3
            if isolate_network():
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=5).close()
                    status = 1
                except OSError:
                    status = 0
            os._exit(status)
        _, ended = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(ended) == 3:
        pytest.skip("this kernel or container forbids network namespaces; builds report network_isolated = false")

    assert os.waitstatus_to_exitcode(ended) == 0


async def test_build_reports_whether_the_network_was_off(directory: Path) -> None:
    probe = await run_program(
        directory,
        """
        import sys
        from compiler_svc.worker.child import isolate_network
        sys.exit(0 if isolate_network() else 9)
        """,
    )

    result = await run_build(directory, spec_of(FP32), limits=LIMITS, on_progress=silent)

    assert isinstance(result, BuildResult)
    assert isinstance(probe, ChildFailure)
    assert result.network_isolated == ("status 0" in probe.message)
