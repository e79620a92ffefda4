# SPDX-License-Identifier: Apache-2.0
"""Parameters of requests: which are taken, which types they must have, and which names are reserved."""

from __future__ import annotations

import grpc
import pytest

from dovetail.pb import oip
from tests.conformance.dialogue import WAYS, Asker, identity_request, same, sample

TAKEN = [
    ("priority", {"uint64_param": 1}),
    ("priority", {"int64_param": 0}),
    ("timeout", {"int64_param": 0}),
    ("timeout", {"int64_param": 60_000_000}),
    ("sequence_id", {"int64_param": 7}),
    ("sequence_id", {"string_param": "seven"}),
    ("sequence_start", {"bool_param": False}),
    ("sequence_end", {"bool_param": False}),
    ("triton_enable_empty_final_response", {"bool_param": True}),
    ("triton_enable_empty_final_response", {"bool_param": False}),
    ("mine", {"string_param": "text"}),
    ("mine", {"int64_param": -1}),
    ("mine", {"bool_param": True}),
]
REFUSED = [
    ("priority", {"string_param": "high"}, "invalid value type for 'priority' parameter"),
    ("priority", {"int64_param": -1}, "invalid value for 'priority', expected value >= 0."),
    ("timeout", {"string_param": "5"}, "invalid value type for 'timeout' parameter, expected int64_param."),
    ("timeout", {"uint64_param": 5}, "invalid value type for 'timeout' parameter, expected int64_param."),
    ("sequence_id", {"bool_param": True}, "invalid value type for 'sequence_id' parameter"),
    ("sequence_start", {"int64_param": 1}, "invalid value type for 'sequence_start' parameter, expected bool_param."),
    ("sequence_end", {"int64_param": 1}, "invalid value type for 'sequence_end' parameter, expected bool_param."),
    ("triton_enable_empty_final_response", {"int64_param": 1}, "expected bool_param."),
    ("triton_other", {"bool_param": True}, "parameter keys starting with 'triton_' are reserved for Triton usage"),
    ("mine", {"uint64_param": 1}, "invalid value type for 'mine' parameter"),
]


def request_with(name: str, value: dict[str, object]) -> oip.ModelInferRequest:
    request = identity_request("FP32", sample("FP32"))
    request.parameters[name].CopyFrom(oip.InferParameter(**value))
    return request


def _ids(case: object) -> str | None:
    return "-".join(case) if isinstance(case, dict) else None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "value"), TAKEN, ids=_ids)
def test_these_are_taken(asker: Asker, name: str, value: dict[str, object], way: str) -> None:
    asker.need("identity_fp32")

    answer = asker.ask(request_with(name, value), way)

    assert same(answer.array("y"), sample("FP32"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "value", "text"), REFUSED, ids=_ids)
def test_these_are_refused(asker: Asker, name: str, value: dict[str, object], text: str, way: str) -> None:
    asker.need("identity_fp32")

    answer = asker.ask(request_with(name, value), way)

    assert text in answer.text
    assert answer.code is (None if way == "stream" else grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("way", WAYS)
def test_a_reply_says_which_artifact_computed_it(asker: Asker, way: str) -> None:
    answer = asker.ask(identity_request("FP32", sample("FP32")), way)

    assert len(answer.response.parameters["dovetail_artifact"].string_param) == 64
