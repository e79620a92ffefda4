# SPDX-License-Identifier: Apache-2.0
"""From a model's outputs to a ModelInferResponse, in pieces that a transport joins.

Tensors always go raw, one entry for each output in order: the official clients read nothing else (the Python client
cannot reshape typed contents, the C++ client indexes raw contents unchecked). An output that goes to a shared memory
region has an empty entry.

What is the same in every reply of a model is made once; large tensors are not copied here.

Source: protobuf encoding; field numbers of `grpc_service.proto`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dovetail.errors import DovetailError, EngineError, ErrorCode, InvalidInputError, OverLimitError
from dovetail.pb import oip
from dovetail.tensor import NUMPY_DTYPES, Array, TensorSpec, to_raw
from runtime_svc.model_facts import ModelFacts
from runtime_svc.protocol.classification import top_classes
from runtime_svc.protocol.requested_outputs import OutputForm
from runtime_svc.protocol.wire import Buffer, delimited, length_prefix, packed_shape
from runtime_svc.shared_memory import RegionWindow

ARTIFACT_PARAMETER = "dovetail_artifact"
FINAL_PARAMETER = "triton_final_response"

MAX_REPLY_BYTES = (1 << 31) - 1
"""What a gRPC message can hold; larger outputs can go to shared memory."""

_COPIED_BYTES = 16 << 10  # below this, a copy costs less than keeping a view
_MAX_KEPT_HEADERS = 256
_ID, _OUTPUT, _RAW = 0x1A, 0x2A, b"\x32"
_NAME, _DATATYPE, _SHAPE = 0x0A, 0x12, 0x1A
_RESPONSE = b"\x12"


class OutputDeliveryError(DovetailError):
    """An output was computed but cannot be put where it was wanted; INTERNAL with its text, as in Triton."""

    code = ErrorCode.ENGINE


class ResponseEncoder:
    """Makes the replies of one model. Safe for several threads.

    Args:
        facts: Of the model.
        partial: True: a reply may lack outputs, as those of a decoupled model may.
    """

    def __init__(self, facts: ModelFacts, *, partial: bool = False) -> None:
        self._facts = facts
        self._partial = partial
        self._plain, self._last, self._not_last = (_beginning(facts, final) for final in (None, True, False))
        self._described = {
            spec.name: delimited(_NAME, spec.name.encode()) + delimited(_DATATYPE, spec.datatype.encode())
            for spec in facts.outputs
        }
        self._dtypes = {spec.name: NUMPY_DTYPES[spec.datatype] for spec in facts.outputs}
        self._headers: dict[tuple[str, tuple[int, ...]], bytes] = {}

    def encode(
        self,
        request_id: str,
        outputs: Mapping[str, Array],
        forms: Mapping[str, OutputForm],
        *,
        final: bool | None = None,
    ) -> list[Buffer]:
        """The reply: the outputs that were asked for, in the model's order; writes those that go to regions.

        Args:
            request_id: Comes back.
            outputs: What the model gave.
            forms: Which outputs, and how; from `read_requested_outputs`.
            final: Whether it is the request's last reply, to be said in a stream; None: not said.

        Raises:
            EngineError: The engine's outputs are not what the model's signature says.
            OutputDeliveryError: A region is too small for its output; then none is written.
            OverLimitError: A message cannot hold them.
        """
        head = [self._plain if final is None else self._last if final else self._not_last]
        if request_id:
            head.append(delimited(_ID, request_id.encode()))
        tail: list[Buffer] = []
        deliveries: list[tuple[RegionWindow, memoryview]] = []
        size = 0
        for spec in self._facts.outputs:
            form = forms.get(spec.name)
            if form is None or (self._partial and spec.name not in outputs):
                continue
            array = outputs.get(spec.name)
            if array is None or (array.dtype != self._dtypes[spec.name] and spec.datatype != "BYTES"):
                raise self._mistaken(spec, array)
            if form.classes:
                array = top_classes(array, form.classes, batched=self._facts.max_batch_size > 0)
            head.append(self._header(spec, array.shape, classes=form.classes > 0))
            text = form.classes > 0 or spec.datatype == "BYTES"
            data = to_raw(array, "BYTES") if text else _raw_view(array)
            if form.window is not None:
                deliveries.append((form.window, _fitting(spec.name, memoryview(data), form.window)))
                data = b""
            tail += (_RAW, length_prefix(len(data)), data)
            size += len(data)
        if size > MAX_REPLY_BYTES - (1 << 20):
            raise _too_large(size)
        _deliver(deliveries)
        return [*head, *tail]

    def empty_final(self, request_id: str) -> list[Buffer]:
        """The last reply to a request whose replies have all been sent."""
        return [self._last, delimited(_ID, request_id.encode())]

    def _header(self, spec: TensorSpec, shape: tuple[int, ...], *, classes: bool) -> bytes:
        key = (spec.name, (-1, *shape)) if classes else (spec.name, shape)
        header = self._headers.get(key)
        if header is None:
            described = self._described[spec.name]
            if classes:
                described = delimited(_NAME, spec.name.encode()) + delimited(_DATATYPE, b"BYTES")
            header = delimited(_OUTPUT, described + (delimited(_SHAPE, packed_shape(shape)) if shape else b""))
            if len(self._headers) >= _MAX_KEPT_HEADERS:
                self._headers.clear()
            self._headers[key] = header
        return header

    def _mistaken(self, spec: TensorSpec, array: Array | None) -> EngineError:
        got = "nothing" if array is None else f"an array of {array.dtype}"
        return EngineError(
            f"engine '{self._facts.engine}' gave {got} for output '{spec.name}' of datatype {spec.datatype}"
        )


def in_stream(pieces: Sequence[Buffer]) -> list[Buffer]:
    """A reply as a message of a stream."""
    return [_RESPONSE, length_prefix(sum(map(len, pieces))), *pieces]


def stream_error(request_id: str, text: str) -> bytes:
    """The reply in a stream to a request that failed: its id and the text, and no tensors."""
    response = oip.ModelInferResponse(id=request_id)
    response.parameters[FINAL_PARAMETER].bool_param = True
    return oip.ModelStreamInferResponse(error_message=text, infer_response=response).SerializeToString()


def _beginning(facts: ModelFacts, final: bool | None) -> bytes:
    response = oip.ModelInferResponse(model_name=facts.name, model_version=str(facts.version))
    response.parameters[ARTIFACT_PARAMETER].string_param = facts.artifact_key
    if final is not None:
        response.parameters[FINAL_PARAMETER].bool_param = final
    return response.SerializeToString(deterministic=True)


def _raw_view(array: Array) -> Buffer:
    """The raw bytes of an array, without a copy if it is large and lies in one piece."""
    if array.nbytes <= _COPIED_BYTES:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _fitting(name: str, data: memoryview, window: RegionWindow) -> memoryview:
    if len(data) > window.byte_size:
        raise OutputDeliveryError(
            f"shared memory size specified with the request for output '{name}' ({window.byte_size} bytes) should be"
            f" at least {len(data)} bytes to hold the results"
        )
    return data


def _deliver(deliveries: list[tuple[RegionWindow, memoryview]]) -> None:
    for window, data in deliveries:
        try:
            window.write(data)
        except InvalidInputError as exc:
            raise OutputDeliveryError(str(exc)) from exc


def _too_large(size: int) -> OverLimitError:
    return OverLimitError(
        f"the outputs have {size} bytes, more than the {MAX_REPLY_BYTES} that a message can hold:"
        " ask for fewer rows or outputs, or have them written to shared memory"
    )
