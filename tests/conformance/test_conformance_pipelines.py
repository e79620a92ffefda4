# SPDX-License-Identifier: Apache-2.0
"""Pipelines (ensembles): answers, graphs, failures in a step, and what becomes of them when a step comes and goes."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from dovetail.pb import oip
from tests.conformance.control_calls import config_of, load, need_control, states, unload
from tests.conformance.dialogue import ERROR_WAYS, WAYS, Asker, request_for, same
from tests.conformance.models import MAX_BATCH_SIZE
from tests.conformance.pipeline_models import PIPELINES

Code = grpc.StatusCode
STRANDED = pytest.mark.ours("Triton leaves out a step whose output nobody asked for, though another step takes it")


def four(rows: int, factor: float = 1.0) -> np.ndarray:
    return (np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) + 1) * np.float32(factor)


def pair(model: str, rows: int = 1, **options: object) -> oip.ModelInferRequest:
    tensors = {"a": ("FP32", four(rows)), "b": ("FP32", four(rows, 10))}
    return request_for(model, tensors, **options)  # type: ignore[arg-type]


def figures(asker: Asker, model: str) -> oip.ModelStatistics:
    return asker.statistics(model)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 3, MAX_BATCH_SIZE])
def test_a_chain_gives_what_its_steps_give(asker: Asker, rows: int, way: str) -> None:
    asker.need("chain")

    answer = asker.ask(pair("chain", rows), way)

    assert same(answer.array("sum"), four(rows) * 2)
    assert same(answer.array("difference"), four(rows, 10) * 2)


@pytest.mark.parametrize("way", WAYS)
def test_steps_side_by_side_meet_again(asker: Asker, way: str) -> None:
    asker.need("diamond")

    answer = asker.ask(pair("diamond", 2), way)

    assert same(answer.array("sum"), four(2) + four(2, 10))
    assert same(answer.array("left"), four(2))  # a tensor between steps may be an output as well


@pytest.mark.parametrize(
    ("model", "output"),
    [
        ("chain", "sum"),
        ("chain", "difference"),
        pytest.param("diamond", "left", marks=STRANDED),
        pytest.param("diamond", "sum", marks=STRANDED),
    ],
)
def test_only_the_outputs_that_were_asked_for_are_sent(asker: Asker, model: str, output: str) -> None:
    asker.need(model)

    answer = asker.ask(pair(model, 1, outputs=[output]))

    assert not answer.failed
    assert [each.name for each in answer.response.outputs] == [output]


def test_a_pipeline_can_be_a_step(asker: Asker) -> None:
    asker.need("nested")

    assert same(asker.ask(pair("nested", 2)).array("twice"), four(2) * 2 + four(2, 10) * 2)


def test_text_goes_through(asker: Asker) -> None:
    asker.need("text_chain")
    text = np.array([[b"", b"a"], ["\u00e4".encode(), b"x" * 300]], dtype=object)

    assert same(asker.ask(request_for("text_chain", {"text": ("BYTES", text)})).array("same"), text)


def test_the_reply_names_the_pipeline(asker: Asker) -> None:
    asker.need("chain")

    response = asker.ask(pair("chain", request_id="mine")).response

    assert (response.model_name, response.model_version, response.id) == ("chain", "1", "mine")


@pytest.mark.parametrize("way", ERROR_WAYS)
def test_a_step_that_fails_fails_the_request_alone(asker: Asker, way: str) -> None:
    asker.need("failing_chain")

    failed = asker.ask(request_for("failing_chain", {"index": ("INT64", np.array([[9]]))}), way)
    fine = asker.ask(request_for("failing_chain", {"index": ("INT64", np.array([[3]]))}), way)

    assert failed.failed
    assert "in ensemble 'failing_chain'" in failed.text
    assert fine.array("picked").tolist() == [[40.0]]


def test_a_failure_in_a_step_is_told_like_the_models_own(asker: Asker) -> None:
    asker.need("failing_chain", "picky")

    direct = asker.ask(request_for("picky", {"index": ("INT64", np.array([[9]]))}))
    through = asker.ask(request_for("failing_chain", {"index": ("INT64", np.array([[9]]))}))

    assert through.code is direct.code


@pytest.mark.parametrize("way", ERROR_WAYS)
@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (pair("chain", MAX_BATCH_SIZE + 1), "inference request batch-size must be <= 8 for 'chain'"),
        (request_for("chain", {"a": ("FP32", four(1))}), "expected 2 inputs but got 1 inputs for model 'chain'"),
        (request_for("chain", {"a": ("FP64", four(1).astype(np.float64)), "b": ("FP32", four(1))}),
         "inference input 'a' data-type is 'FP64', but model 'chain' expects 'FP32'"),
        (request_for("chain", {"a": ("FP32", np.ones((1, 5), np.float32)), "b": ("FP32", four(1))}),
         "unexpected shape for input 'a' for model 'chain'. Expected [-1,4], got [1,5]"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_the_first_step(
    asker: Asker, request_: oip.ModelInferRequest, text: str, way: str
) -> None:
    asker.need("chain")

    answer = asker.ask(request_, way)

    assert text in answer.text
    assert answer.code in (None, Code.INVALID_ARGUMENT)


def test_many_at_once_get_their_own_answers(asker: Asker) -> None:
    asker.need("chain")
    requests = [
        request_for(
            "chain", {"a": ("FP32", np.full((1, 4), n, np.float32)), "b": ("FP32", np.zeros((1, 4), np.float32))}
        )
        for n in range(50)
    ]

    answers = asker.ask_all(requests)

    assert [answer.array("sum")[0, 0] for answer in answers] == [2.0 * n for n in range(50)]


def test_each_step_and_the_pipeline_count_their_own(asker: Asker) -> None:
    asker.need("chain", "add_sub")
    before = {name: figures(asker, name) for name in ("chain", "add_sub")}

    asker.ask(pair("chain", 3))

    after = {name: figures(asker, name) for name in ("chain", "add_sub")}
    grown = {name: after[name].inference_count - before[name].inference_count for name in after}
    requests = {
        name: after[name].inference_stats.success.count - before[name].inference_stats.success.count for name in after
    }
    assert grown == {"chain": 3, "add_sub": 6}
    assert requests == {"chain": 1, "add_sub": 2}


@pytest.mark.parametrize(
    "model",
    ["picky", pytest.param("failing_chain", marks=pytest.mark.ours("Triton counts it twice for the pipeline"))],
)
def test_a_failure_in_a_step_is_counted_by_both(asker: Asker, model: str) -> None:
    asker.need("failing_chain", "picky")
    before = figures(asker, model).inference_stats.fail.count

    asker.ask(request_for("failing_chain", {"index": ("INT64", np.array([[9]]))}))

    assert figures(asker, model).inference_stats.fail.count == before + 1


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda pipeline: pipeline.name)
def test_the_configuration_tells_the_graph(asker: Asker, pipeline: object) -> None:
    wanted = pipeline.to_config()  # type: ignore[attr-defined]
    asker.need(wanted["name"])

    config = config_of(asker.stub, wanted["name"])

    assert config.platform == "ensemble"
    assert config.WhichOneof("scheduling_choice") == "ensemble_scheduling"
    assert [
        (step.model_name, step.model_version, dict(step.input_map), dict(step.output_map))
        for step in config.ensemble_scheduling.step
    ] == [
        (step["model_name"], -1, step["input_map"], step["output_map"])
        for step in wanted["ensemble_scheduling"]["step"]
    ]
    assert config.max_batch_size == wanted["max_batch_size"]
    assert not config.instance_group


def test_the_metadata_are_those_of_a_model(asker: Asker) -> None:
    asker.need("diamond")

    found = asker.stub.ModelMetadata(oip.ModelMetadataRequest(name="diamond"))

    assert found.platform == "ensemble"
    assert {tensor.name: list(tensor.shape) for tensor in found.inputs} == {"a": [-1, 4], "b": [-1, 4]}
    assert {tensor.name for tensor in found.outputs} == {"sum", "left"}


def test_cancelling_reaches_the_step(asker: Asker) -> None:
    asker.need("slow_chain", "slow")
    busy = [
        asker.stub.ModelInfer.future(request_for("slow_chain", {"turns": ("INT64", np.array([4000]))}), timeout=60)
        for _ in range(3)
    ]
    for call in busy[1:]:
        call.cancel()

    assert busy[0].result().outputs
    assert not asker.ask(request_for("slow_chain", {"turns": ("INT64", np.array([1]))})).failed


@pytest.fixture
def control(asker: Asker) -> Iterator[oip.Stub]:
    """The server, if it lets callers control models; `picky` and what is made of it is there again afterwards."""
    asker.need("failing_chain", "picky")
    need_control(asker.stub, "picky")
    yield asker.stub
    load(asker.stub, "picky")
    load(asker.stub, "failing_chain")


def picked(asker: Asker) -> grpc.StatusCode | None:
    return asker.ask(request_for("failing_chain", {"index": ("INT64", np.array([[1]]))})).code


def test_a_pipeline_is_not_ready_while_a_step_is_not(control: oip.Stub, asker: Asker) -> None:
    unload(control, "picky")
    while_away = (
        control.ModelReady(oip.ModelReadyRequest(name="failing_chain")).ready,
        states(control)["failing_chain"],
        picked(asker),
    )
    load(control, "picky")

    assert while_away[0] is False
    assert while_away[1] == "UNAVAILABLE"
    assert while_away[2] in (Code.UNAVAILABLE, Code.NOT_FOUND)
    assert control.ModelReady(oip.ModelReadyRequest(name="failing_chain")).ready
    assert picked(asker) is Code.OK


def test_a_pipeline_finds_a_step_that_was_loaded_anew(control: oip.Stub, asker: Asker) -> None:
    load(control, "picky")

    assert picked(asker) is Code.OK


def test_unloading_a_pipeline_leaves_its_steps(control: oip.Stub, asker: Asker) -> None:
    unload(control, "failing_chain")

    assert states(control)["failing_chain"] == "UNAVAILABLE"
    assert not asker.ask(request_for("picky", {"index": ("INT64", np.array([[1]]))})).failed


@pytest.mark.usefixtures("ours")
def test_unloading_with_dependents_takes_the_steps_that_only_it_uses(control: oip.Stub) -> None:
    unload(control, "failing_chain", dependents=True)
    after = states(control)
    load(control, "picky")
    load(control, "identity_int64")

    assert (after["failing_chain"], after["picky"]) == ("UNAVAILABLE", "UNAVAILABLE")
    assert after["add_sub"] == "READY"


STEP = {"model_name": "add_sub", "model_version": -1, "input_map": {"a": "a", "b": "b"}, "output_map": {"sum": "sum"}}
TENSOR = {"data_type": "TYPE_FP32", "dims": [4]}


def graph(*steps: dict[str, object], **changes: object) -> dict[str, object]:
    return {
        "platform": "ensemble",
        "max_batch_size": 8,
        "input": [{"name": "a", **TENSOR}, {"name": "b", **TENSOR}],
        "output": [{"name": "sum", **TENSOR}],
        "ensemble_scheduling": {"step": list(steps or (STEP,))},
        **changes,
    }


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    ("config", "text"),
    [
        (graph({**STEP, "model_name": "nobody"}), "contains models that are not available: nobody"),
        (graph({**STEP, "model_name": "failing_chain"}), "ensemble 'failing_chain' contains itself"),
        (graph({**STEP, "input_map": {"a": "a", "c": "b"}}), "is mapping to non-existing input c in model add_sub"),
        (graph({**STEP, "output_map": {"total": "sum"}}), "is mapped from non-existing output total in model add_sub"),
        (graph({**STEP, "input_map": {"a": "a"}}), "ensemble input 'b' for ensemble 'failing_chain' is not used"),
        (graph(STEP, STEP), "ensemble tensor 'sum' can appear in an output map only once"),
        (graph({**STEP, "output_map": {"sum": "sum", "difference": "d"}}), "ensemble tensor 'd' is unused in ensemble"),
        (graph(output=[{"name": "other", **TENSOR}]), "ensemble output 'other' for ensemble 'failing_chain'"),
        (graph({**STEP, "input_map": {"a": "a", "b": "x"}}), "ensemble tensor 'x' is not written in ensemble"),
        (graph({**STEP, "input_map": {"a": "a", "b": "y"}, "output_map": {"sum": "x"}},
               {**STEP, "input_map": {"a": "x", "b": "b"}, "output_map": {"sum": "y", "difference": "sum"}}),
         "wait for each other in a cycle"),
        (graph(input=[{"name": "a", "data_type": "TYPE_FP64", "dims": [4]}, {"name": "b", **TENSOR}]),
         "inconsistent data type: TYPE_FP64 is inferred from model failing_chain while TYPE_FP32 is inferred from"),
        (graph(input=[{"name": "a", "data_type": "TYPE_FP32", "dims": [5]}, {"name": "b", **TENSOR}]),
         "inconsistent shape: [-1,5] is inferred from model failing_chain while [-1,4] is inferred from model add_sub"),
        (graph(max_batch_size=16), "allows maximum batch size 16, but it contains model add_sub"),
        (graph(instance_group=[{"count": 1}]), "instance group should not be specified for ensemble 'failing_chain'"),
        (graph(ensemble_scheduling={"step": []}), "must specify 'step' for ensemble 'failing_chain'"),
        (graph({**STEP, "model_name": ""}), "must specify 'model_name' in step 0 of ensemble 'failing_chain'"),
        (graph({**STEP, "input_map": {}}), "must specify 'input_map' in step 0 of ensemble 'failing_chain'"),
        (graph({**STEP, "output_map": {}}), "must specify 'output_map' in step 0 of ensemble 'failing_chain'"),
        (graph(backend="onnxruntime"), "ensemble scheduling cannot be set for model 'failing_chain'"),
        ({"platform": "ensemble"}, "ensemble scheduling must be set for ensemble failing_chain"),
    ],
)  # fmt: skip
def test_a_graph_that_does_not_hold_together_is_refused_and_what_served_goes_on(
    control: oip.Stub, asker: Asker, config: dict[str, object], text: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        load(control, "failing_chain", config)

    assert text in caught.value.details()
    assert caught.value.code() in (Code.INVALID_ARGUMENT, Code.UNAVAILABLE)
    assert picked(asker) is Code.OK
