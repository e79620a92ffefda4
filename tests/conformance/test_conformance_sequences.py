# SPDX-License-Identifier: Apache-2.0
"""Sequences: flags, ids, controls, state and errors, asked one by one and over streams."""

from __future__ import annotations

import threading

import grpc
import numpy as np
import pytest

from dovetail.pb import oip
from dovetail.tensor import NUMPY_DTYPES
from tests.conformance.dialogue import TIMEOUT_S, WAYS, Answer, Asker, Target
from tests.conformance.sequence_requests import DIRECT_AND_OLDEST, ask_each, new_id, outputs, run_all, step, sums, whole

VALUES = (11, 7, 5, 3, 2, 0, 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", ["simple_sequence", "simple_dyna_sequence", "simple_string_dyna_sequence"])
def test_the_start_is_told_to_the_model_once(asker: Asker, model: str, way: str) -> None:
    asker.need(model)
    name = str(new_id()) if "string" in model else new_id()

    answers = ask_each(asker, whole(model, name, VALUES), way)

    last = VALUES[-1] + (int(name) if "dyna" in model else 0)  # oldest ones add the id to the last output
    assert outputs(answers) == [VALUES[0] + 1, *VALUES[1:-1], last]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", DIRECT_AND_OLDEST)
@pytest.mark.parametrize("length", [1, 2, 20])
def test_state_goes_from_request_to_request(asker: Asker, model: str, way: str, length: int) -> None:
    asker.need(model)
    values = [turn % 7 + 1 for turn in range(length)]

    assert outputs(ask_each(asker, whole(model, new_id(), values), way)) == sums(values)


@pytest.mark.parametrize("way", WAYS)
def test_a_state_begins_with_its_initial_value(asker: Asker, way: str) -> None:
    asker.need("sequence_initial")

    for _ in range(2):  # each sequence anew
        assert outputs(ask_each(asker, whole("sequence_initial", new_id(), [1, 2]), way)) == [1001, 1003]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", DIRECT_AND_OLDEST)
@pytest.mark.parametrize("count", [2, 4, 6])
def test_interleaved_sequences_keep_to_themselves(asker: Asker, model: str, way: str, count: int) -> None:
    """Six is more than the four slots of the direct one: two wait for others to end."""
    asker.need(model)
    values = {new_id(): [10**place * turn for turn in (1, 2, 3)] for place in range(count)}
    sequences = [whole(model, name, numbers) for name, numbers in values.items()]

    if count == 6 and way == "unary":  # one call at a time would wait for ever for a slot
        streams = [threading.Thread(target=lambda each: got.update({each[0].id: asker.ask_all(each)}), args=(each,))
                   for each in sequences]  # fmt: skip
        got: dict[str, list[Answer]] = {}
        run_all(streams)
    else:
        requests = [request for turn in zip(*sequences, strict=True) for request in turn]
        answers = ask_each(asker, requests, way)
        got = {each[0].id: answers[place::count] for place, each in enumerate(sequences)}

    assert [outputs(got[each[0].id]) for each in sequences] == [sums(numbers) for numbers in values.values()]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", DIRECT_AND_OLDEST)
def test_an_id_may_be_used_again_after_its_end(asker: Asker, model: str, way: str) -> None:
    asker.need(model)
    name = new_id()

    answers = [answer for values in ([1, 2], [5, 6]) for answer in ask_each(asker, whole(model, name, values), way)]

    assert outputs(answers) == [1, 3, 5, 11]


@pytest.mark.ours(
    "Triton may begin the second one first, which the stand-in for states in real_triton cannot tell apart"
)
@pytest.mark.parametrize("model", DIRECT_AND_OLDEST)
def test_an_id_may_be_used_again_before_its_end_was_answered(asker: Asker, model: str) -> None:
    name = new_id()

    answers = asker.ask_all([*whole(model, name, [1, 2]), *whole(model, name, [5, 6])])

    assert outputs(answers) == [1, 3, 5, 11]


@pytest.mark.parametrize("model", DIRECT_AND_OLDEST)
def test_a_start_within_a_sequence_begins_it_anew(asker: Asker, model: str) -> None:
    asker.need(model)
    name = new_id()
    requests = [
        step(model, name, 1, start=True), step(model, name, 2), step(model, name, 5, start=True),
        step(model, name, 6, end=True),
    ]  # fmt: skip

    assert outputs(ask_each(asker, requests, "unary")) == [1, 3, 5, 11]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [1 << 31, (1 << 63) - 1, "text", "ä", "42", "x" * 100])
def test_ids_may_be_large_or_text(asker: Asker, target: Target, name: int | str, way: str) -> None:
    asker.need("onnx_sequence_int32")
    own = f"{name}-{new_id()}" if isinstance(name, str) else name - (new_id() % 1000)

    assert outputs(ask_each(asker, whole("onnx_sequence_int32", own, [1, 2, 3]), way)) == [1, 3, 6]


def test_a_number_and_the_same_text_are_two_sequences(asker: Asker) -> None:
    asker.need("onnx_sequence_int32")
    name = new_id()
    first, second = (whole("onnx_sequence_int32", each, [1, 2]) for each in (name, str(name)))

    answers = ask_each(asker, [first[0], second[0], first[1], second[1]], "unary")

    assert outputs(answers) == [1, 1, 3, 3]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", [*DIRECT_AND_OLDEST, "simple_sequence"])
@pytest.mark.parametrize("flags", [{}, {"end": True}], ids=["middle", "end"])
def test_a_sequence_must_be_started(asker: Asker, model: str, way: str, flags: dict[str, bool]) -> None:
    asker.need(model)
    name = new_id()

    answer = asker.ask(step(model, name, 1, **flags), way)

    assert answer.code is (grpc.StatusCode.INVALID_ARGUMENT if way == "unary" else None)
    assert (
        f"inference request for sequence {name} to model '{model}' must specify the START flag on the first request of"
        " the sequence" in answer.text
    )


def test_a_sequence_of_text_must_be_started_too(asker: Asker) -> None:
    asker.need("onnx_sequence_int32")

    answer = asker.ask(step("onnx_sequence_int32", "never-started", 1))

    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "inference request for sequence never-started to model 'onnx_sequence_int32' must specify" in answer.text


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", DIRECT_AND_OLDEST)
@pytest.mark.parametrize("name", [0, "", None])
def test_a_request_must_name_its_sequence(asker: Asker, model: str, way: str, name: int | str | None) -> None:
    asker.need(model)
    request = step(model, name if name is not None else 1, 1, start=True)
    if name is None:
        request.ClearField("parameters")

    answer = asker.ask(request, way)

    assert answer.code is (grpc.StatusCode.INVALID_ARGUMENT if way == "unary" else None)
    assert f"inference request to model '{model}' must specify a non-zero or non-empty correlation ID" in answer.text


@pytest.mark.parametrize("model", DIRECT_AND_OLDEST)
def test_a_request_has_one_row(asker: Asker, model: str) -> None:
    asker.need(model)

    answer = asker.ask(step(model, new_id(), 1, start=True, shape=(2, 1)))

    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (
        f"inference request to model '{model}' must specify batch-size 1 due to requirements of sequence batcher"
        in answer.text
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_mistake_within_a_sequence_leaves_it_as_it_was(asker: Asker, way: str) -> None:
    asker.need("onnx_sequence_int32")
    name = new_id()
    good = whole("onnx_sequence_int32", name, [1, 2, 3])
    bad = step("onnx_sequence_int32", name, 9, shape=(1, 2))  # two columns: refused before it is queued

    answers = ask_each(asker, [good[0], bad, good[1], good[2]], way)

    assert [answer.failed for answer in answers] == [False, True, False, False]
    assert outputs([answers[place] for place in (0, 2, 3)]) == [1, 3, 6]


@pytest.mark.parametrize("way", WAYS)
def test_a_failure_of_the_model_leaves_the_state_as_it_was(asker: Asker, way: str) -> None:
    asker.need("sequence_slow")
    name = new_id()
    requests = whole("sequence_slow", name, [1, -1, 2])

    answers = ask_each(asker, requests, way)

    assert [answer.failed for answer in answers] == [False, True, False]
    assert "ValueError: less than nothing" in answers[1].text
    assert outputs([answers[0], answers[2]]) == [1, 3]


@pytest.mark.parametrize("tensor", ["START", "READY", "INPUT_STATE", "CORRID"])
def test_what_the_server_gives_must_not_be_sent(asker: Asker, tensor: str) -> None:
    model = {"INPUT_STATE": "onnx_sequence_int32", "CORRID": "simple_dyna_sequence"}.get(tensor, "simple_sequence")
    asker.need(model)
    request = step(model, new_id(), 1, start=True)
    datatype = "UINT64" if tensor == "CORRID" else "INT32"
    request.inputs.add(name=tensor, datatype=datatype, shape=[1, 1])
    request.raw_input_contents.append(np.ones((1, 1), NUMPY_DTYPES[datatype]).tobytes())

    answer = asker.ask(request)

    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert tensor in answer.text


@pytest.mark.parametrize("model", ["simple_sequence", "onnx_sequence_int32", "onnx_dyna_sequence_int32"])
def test_metadata_has_only_what_requests_and_replies_have(asker: Asker, model: str) -> None:
    asker.need(model)

    metadata = asker.stub.ModelMetadata(oip.ModelMetadataRequest(name=model), timeout=TIMEOUT_S)

    assert [(tensor.name, list(tensor.shape)) for tensor in metadata.inputs] == [("INPUT", [-1, 1])]
    assert [tensor.name for tensor in metadata.outputs] == ["OUTPUT"]


@pytest.mark.parametrize("model", ["simple_sequence", "simple_dyna_sequence", "onnx_dyna_sequence_int32"])
def test_the_configuration_shows_how_sequences_are_served(asker: Asker, model: str) -> None:
    asker.need(model)

    config = asker.stub.ModelConfig(oip.ModelConfigRequest(name=model), timeout=TIMEOUT_S).config

    assert config.HasField("sequence_batching")
    assert config.sequence_batching.WhichOneof("strategy_choice") == ("oldest" if "dyna" in model else "direct")
    controls = [item.name for item in config.sequence_batching.control_input]
    given = {"simple_sequence": ["START", "READY"], "simple_dyna_sequence": ["START", "END", "READY", "CORRID"]}
    assert controls == given.get(model, [])
    assert [item.input_name for item in config.sequence_batching.state] == (["INPUT_STATE"] if "onnx" in model else [])


def test_the_server_says_that_it_knows_sequences(asker: Asker) -> None:
    assert "sequence" in asker.stub.ServerMetadata(oip.ServerMetadataRequest(), timeout=TIMEOUT_S).extensions
