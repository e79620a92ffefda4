# SPDX-License-Identifier: Apache-2.0
"""Questions to a server and its answers, the same for unary calls and for streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest

from dovetail.pb import oip
from dovetail.tensor import NUMPY_DTYPES, Array, from_raw, to_raw

TIMEOUT_S = 60.0  # a safety net; nothing here takes a second
STREAM_STATUS_HEADER = (("triton_grpc_error", "true"),)

WAYS = ("unary", "stream")
"""How an inference can be asked for; ERROR_WAYS has a third, in which a stream ends with its first error's status."""

ERROR_WAYS = (*WAYS, "stream-status")

CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
"""Datatype -> field of typed contents."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        code: Status; None for an error inside a stream, which has only a text.
        text: Of the error; "" if there is none.
        response: Empty after an error.
    """

    code: grpc.StatusCode | None
    text: str = ""
    response: oip.ModelInferResponse = field(default_factory=oip.ModelInferResponse)

    @property
    def failed(self) -> bool:
        return self.code is not grpc.StatusCode.OK

    def array(self, output: str) -> Array:
        """An output of the reply, from its raw contents."""
        assert not self.failed, self.text
        names = [item.name for item in self.response.outputs]
        assert len(self.response.raw_output_contents) == len(names), "one raw entry for each output"
        place = names.index(output)
        described = self.response.outputs[place]
        return from_raw(self.response.raw_output_contents[place], described.datatype, described.shape)


@dataclass(frozen=True, slots=True)
class Target:
    """The server that is asked.

    Attributes:
        address: Its host:port.
        own: True if it is ours, so that what goes beyond the protocol is asked, too.
        models: Names of the suite's models that it serves.
        extensions: What it says that it can do.
        stream_status: True if a stream can be made to end with its first error's status.
    """

    address: str
    own: bool
    models: frozenset[str]
    extensions: frozenset[str]
    stream_status: bool


class SentHeaders(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Adds headers to every call, such as the token that a server demands."""

    def __init__(self, headers: Sequence[tuple[str, str]]) -> None:
        self._headers = tuple(headers)

    def intercept_unary_unary(self, continuation: Callable, details: grpc.ClientCallDetails, request: object) -> object:
        return continuation(self._with_headers(details), request)

    def intercept_stream_stream(
        self, continuation: Callable, details: grpc.ClientCallDetails, requests: object
    ) -> object:
        return continuation(self._with_headers(details), requests)

    def _with_headers(self, details: grpc.ClientCallDetails) -> grpc.ClientCallDetails:
        changed = _CallDetails()
        for name in ("method", "timeout", "credentials", "wait_for_ready", "compression"):
            setattr(changed, name, getattr(details, name, None))
        changed.metadata = [*(details.metadata or ()), *self._headers]
        return changed


class _CallDetails(grpc.ClientCallDetails):
    """Those of a call, changed."""


class Asker:
    """Sends inferences.

    Args:
        stub: Client whose calls block.
        target: What is known about the server.
    """

    def __init__(self, stub: oip.Stub, target: Target) -> None:
        self.stub = stub
        self._target = target

    def need(self, *models: str) -> None:
        """Skip the test if the server lacks one of these models."""
        for name in models:
            if name not in self._target.models:
                pytest.skip(f"the server does not serve the suite's model {name}")

    def statistics(self, model: str) -> oip.ModelStatistics:
        """Those of a model's only version; another server may count a request when it was answered already."""
        question, last = oip.ModelStatisticsRequest(name=model, version="1"), oip.ModelStatistics()
        for _ in range(100):
            (figures,) = self.stub.ModelStatistics(question, timeout=TIMEOUT_S).model_stats
            if self._target.own or figures == last:
                break
            last = figures
            time.sleep(0.05)
        return figures

    def ask(self, request: oip.ModelInferRequest, way: str = "unary") -> Answer:
        """One inference."""
        if way == "stream-status" and not self._target.stream_status:
            pytest.skip("the server does not end streams with a status")
        try:
            if way == "unary":
                return Answer(grpc.StatusCode.OK, response=self.stub.ModelInfer(request, timeout=TIMEOUT_S))
            (answer,) = self.ask_all([request], metadata=STREAM_STATUS_HEADER if way == "stream-status" else ())
        except grpc.RpcError as error:
            return Answer(error.code(), error.details() or "")
        return answer

    def ask_all(
        self, requests: Sequence[oip.ModelInferRequest], metadata: Sequence[tuple[str, str]] = ()
    ) -> list[Answer]:
        """Inferences on one stream, and their answers in order of arrival."""
        replies = self.stub.ModelStreamInfer(iter(requests), timeout=TIMEOUT_S, metadata=metadata)
        return [
            Answer(None if reply.error_message else grpc.StatusCode.OK, reply.error_message, reply.infer_response)
            for reply in replies
        ]


def request_for(
    model: str,
    tensors: Mapping[str, tuple[str, Array]],
    *,
    form: str = "raw",
    outputs: Sequence[str] = (),
    request_id: str = "",
    version: str = "",
) -> oip.ModelInferRequest:
    """An inference request.

    Args:
        model: Which model.
        tensors: Input name -> datatype and values.
        form: "raw" or "typed".
        outputs: Which outputs to ask for.
        request_id: Comes back.
        version: Of the model.
    """
    request = oip.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, (datatype, values) in tensors.items():
        tensor = request.inputs.add(name=name, datatype=datatype, shape=values.shape)
        if form == "raw":
            request.raw_input_contents.append(to_raw(values, datatype))
        else:
            getattr(tensor.contents, CONTENTS[datatype]).extend(values.ravel().tolist())
    for name in outputs:
        request.outputs.add(name=name)
    return request


def identity_request(datatype: str, values: Array, **options: object) -> oip.ModelInferRequest:
    """A request to the identity of a datatype."""
    return request_for(f"identity_{datatype.lower()}", {"x": (datatype, values)}, **options)  # type: ignore[arg-type]


def sample(datatype: str, rows: int = 1, columns: int = 4) -> Array:
    """Values of a datatype, with its limits and special ones, repeated to fill the shape."""
    dtype = NUMPY_DTYPES[datatype]
    values: Array
    if datatype == "BYTES":
        values = np.array([b"", b"a\nb", "ä€".encode(), b"x" * 300], dtype=object)  # ONNX text is UTF-8
    elif datatype == "BF16":
        values = np.array([0x0000, 0x7FC0, 0xFF80, 0x3F80], dtype=dtype)  # 0, NaN, -inf, 1
    elif dtype.kind == "b":
        values = np.array([True, False, False, True])
    elif dtype.kind == "f":
        values = np.array([0.0, np.nan, -np.inf, np.finfo(dtype).max], dtype=dtype)
    else:
        values = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max, 0, 1], dtype=dtype)
    return np.resize(values, (rows, columns))


def same(left: Array, right: Array) -> bool:
    """True if arrays are equal bit by bit, NaN included."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype == object:
        return bool(left.tolist() == right.tolist())
    return np.ascontiguousarray(left).tobytes() == np.ascontiguousarray(right).tobytes()
