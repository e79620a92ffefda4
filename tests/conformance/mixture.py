# SPDX-License-Identifier: Apache-2.0
"""Random questions whose right answers are known, and clients that ask many of them at once in every way there is."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import numpy as np

from dovetail.pb import oip
from dovetail.tensor import NUMPY_DTYPES, Array, from_raw
from tests.conformance.dialogue import CONTENTS, request_for, same
from tests.conformance.sequence_requests import new_id, step

Code = grpc.StatusCode
ENDED_S = 100.0  # a safety net
FULL, EXPIRED = "Exceeds maximum queue size", "Request timeout expired"
PLAIN = (
    "identity", "add_sub", "chain", "nested", "cached", "cached_chain", "picky", "batching_plain", "batching_ordered",
    "batching_levels", "batching_bounded", "batching_reject", "batching_late", "batching_padded", "batching_split",
    "batching_buckets",
)  # fmt: skip
"""Kinds of questions with one answer; `identity` stands for those of all datatypes."""

SEQUENCES = ("onnx_sequence_int32", "onnx_dyna_sequence_int32")
NEEDED = ("identity_fp32", *PLAIN[1:], *SEQUENCES, "square_int32")
"""Models that a server must have."""


@dataclass(frozen=True)
class Question:
    """A request, the outputs that answer it, and the errors that it may get instead."""

    request: oip.ModelInferRequest
    wanted: dict[str, Array]
    faults: tuple[str, ...] = ()

    def check(self, response: oip.ModelInferResponse) -> None:
        """Fail if the reply is not the answer to this question."""
        got = {
            output.name: from_raw(raw, output.datatype, output.shape)
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }
        assert response.id == self.request.id
        for name, values in self.wanted.items():
            assert same(got[name], values), f"{self.request.model_name} gave {got[name]} instead of {values}"

    def check_error(self, text: str) -> str:
        """What became of it; fails if it did nothing to deserve this error."""
        assert any(fault in text for fault in self.faults), f"{self.request.model_name}: {text}"
        return "refused"


def question(model: str, chance: random.Random, number: int, *, own: bool) -> Question:
    """A random question to a model; only our own server is sent what makes a whole batch fail."""
    rows = chance.choice([1, 1, 2, chance.randint(1, 8)])
    name = str(number)
    if model == "identity":
        return _identity(chance, rows, name)
    if model == "picky":
        index = np.array([[chance.randint(0, 5 if own else 3)] for _ in range(rows)])
        bad = bool((index > 3).any())
        request = request_for("picky", {"index": ("INT64", index)}, request_id=name)
        return Question(request, {"picked": (10 + 10 * index).astype(np.float32)}, ("",) if bad else ())
    if model.startswith("batching"):
        return _batching(model, chance, rows, name, own=own)
    few = model.startswith("cached")  # so that some come from the cache
    a = np.full((rows, 4), chance.randint(0, 3) if few else number, np.float32)
    b = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    wanted = {
        "chain": {"sum": a * 2, "difference": b * 2},
        "nested": {"twice": a * 2 + b * 2},
        "cached_chain": {"sum": a + b},
    }.get(model, {"sum": a + b, "difference": a - b})
    request = request_for(
        model, {"a": ("FP32", a), "b": ("FP32", b)}, form=chance.choice(["raw", "typed"]), request_id=name
    )
    return Question(
        request, wanted, () if own or not few else ("response output count mismatch",)
    )  # Triton's issue 4362


def _identity(chance: random.Random, rows: int, name: str) -> Question:
    datatype = chance.choice(list(CONTENTS))
    columns = chance.choice([1, 3, 64, 3000])
    values: Array
    if datatype == "BYTES":
        texts = [chance.randbytes(chance.randint(0, 9)).hex().encode() for _ in range(rows * columns)]
        values = np.array(texts, dtype=object).reshape(rows, columns)
    else:
        dtype = np.dtype(NUMPY_DTYPES[datatype])
        data = chance.randbytes(rows * columns * dtype.itemsize)
        values = np.frombuffer(data, np.uint8 if dtype.kind == "b" else dtype).reshape(rows, columns)
        values = (values % 2).astype(dtype) if dtype.kind == "b" else values
    form = "raw" if datatype.startswith("FP") else chance.choice(["raw", "typed"])  # typed NaN may lose bits on the way
    request = request_for(f"identity_{datatype.lower()}", {"x": (datatype, values)}, form=form, request_id=name)
    return Question(request, {"y": values})


def _batching(model: str, chance: random.Random, rows: int, name: str, *, own: bool) -> Question:
    if model in ("batching_ordered", "batching_levels", "batching_late"):
        rows = 1
    elif model in ("batching_split", "batching_padded"):
        rows = chance.randint(1, 12 if own and model == "batching_split" else 4)
    value = np.full((rows, chance.choice([1, 3, 4, 6, 9])), int(name), np.float32)
    value += np.arange(rows, dtype=np.float32)[:, None] / 16
    delay = np.full((rows, 1), chance.choice([0, 0, 1, 3]), np.int32)
    request = request_for(model, {"value": ("FP32", value), "delay_ms": ("INT32", delay)}, request_id=name)
    faults: tuple[str, ...] = {"batching_bounded": (FULL,), "batching_reject": (EXPIRED,)}.get(model, ())
    if chance.random() < 0.1:
        request.parameters["timeout"].int64_param = chance.randint(1, 5000)
        faults = (*faults, EXPIRED)
    if chance.random() < 0.3:
        request.parameters["priority"].uint64_param = chance.randint(0, 4)
    return Question(request, {"value": value}, faults)


class Client:
    """Asks one thing after the other, some of it many at once; `outcomes` counts what became of the questions."""

    def __init__(self, stub: oip.Stub, models: Sequence[str], seed: int, *, own: bool, number: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.problem: BaseException | None = None
        self._stub, self._models, self._own = stub, models, own
        self._patient = not own  # Triton 2.51 ends now and then by callers who give up, or decoupled models, in a crowd
        self._chance = random.Random(seed)
        self._number = number * 100_000
        self._thread = threading.Thread(target=self._run, args=(self._chance.randint(1, 6),))

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()
        if self.problem is not None:
            raise self.problem

    def _run(self, turns: int) -> None:
        ways: list[Callable[[], None]] = [self._calls, self._calls, self._stream, self._sequence]
        if not self._patient:
            ways.append(self._replies)
        try:
            for _ in range(turns):
                self._chance.choice(ways)()
        except BaseException as error:  # told by join
            self.problem = error

    def _question(self) -> Question:
        self._number += 1
        return question(self._chance.choice(self._models), self._chance, self._number, own=self._own)

    def _calls(self) -> None:
        """Calls at once, of which some are given up or have little time."""
        waiting = []
        for _ in range(self._chance.randint(1, 12)):
            fate = "" if self._patient else self._chance.choice(["", "", "", "", "cancelled", "late"])
            asked = self._question()
            timeout = self._chance.uniform(0.0001, 0.02) if fate == "late" else ENDED_S
            waiting.append((asked, fate, self._stub.ModelInfer.future(asked.request, timeout=timeout)))
            if fate == "cancelled":
                waiting[self._chance.randrange(len(waiting))][2].cancel()
        cancelled = {id(call) for _, _, call in waiting if call.cancelled()}
        for asked, fate, call in waiting:
            code = call.code()
            if code is Code.OK:
                asked.check(call.result())
                self.outcomes["answered"] += 1
            elif code is Code.CANCELLED and id(call) in cancelled:
                self.outcomes["cancelled"] += 1
            elif code is Code.DEADLINE_EXCEEDED and fate == "late":
                self.outcomes["late"] += 1
            else:
                self.outcomes[asked.check_error(f"{code.name} {call.details()}")] += 1

    def _stream(self) -> None:
        """Questions on one stream, which may be given up in the midst of its replies."""
        asked = [self._question() for _ in range(self._chance.randint(1, 12))]
        by_id = {each.request.id: each for each in asked}
        leaves_after = self._chance.choice([len(asked), len(asked), self._chance.randint(0, len(asked))])
        if self._patient:
            leaves_after = len(asked)
        replies = self._stub.ModelStreamInfer(iter([each.request for each in asked]), timeout=ENDED_S)
        for _ in range(leaves_after):
            reply = next(replies)
            each = by_id.pop(reply.infer_response.id)
            if reply.error_message:
                self.outcomes[each.check_error(reply.error_message)] += 1
            else:
                each.check(reply.infer_response)
                self.outcomes["answered"] += 1
        if by_id:
            replies.cancel()
            self.outcomes["cancelled"] += len(by_id)
        else:
            assert list(replies) == []

    def _sequence(self) -> None:
        """A sequence on a stream or by calls, which may be left without its end."""
        model, name, total = self._chance.choice(SEQUENCES), new_id(), 0
        values = [self._chance.randint(0, 1000) for _ in range(self._chance.randint(1, 8))]
        last = len(values) - 1
        requests = [
            step(model, name, value, start=turn == 0, end=turn == last, request_id=str(turn))
            for turn, value in enumerate(values)
        ]
        if self._chance.random() < 0.5:
            got = [each.infer_response for each in self._stub.ModelStreamInfer(iter(requests), timeout=ENDED_S)]
        else:
            got = [self._stub.ModelInfer(request, timeout=ENDED_S) for request in requests]
        for request, value, response in zip(requests, values, got, strict=True):
            total += value
            Question(request, {"OUTPUT": np.full((1, 1), total, np.int32)}).check(response)
        self.outcomes["answered"] += len(values)

    def _replies(self) -> None:
        """Decoupled requests on one stream, each with as many replies as it asks for."""
        counts = {str(place): self._chance.randint(0, 20) for place in range(self._chance.randint(1, 4))}
        requests = [
            request_for("square_int32", {"IN": ("INT32", np.array([count], np.int32))}, request_id=name)
            for name, count in counts.items()
        ]
        got: Counter[str] = Counter()
        for reply in self._stub.ModelStreamInfer(iter(requests), timeout=ENDED_S):
            assert not reply.error_message, reply.error_message
            name = reply.infer_response.id
            got[name] += 1
            assert from_raw(reply.infer_response.raw_output_contents[0], "INT32", [1]).item() == counts[name]
        assert {name: got[name] for name in counts} == counts
        self.outcomes["answered"] += len(counts)
