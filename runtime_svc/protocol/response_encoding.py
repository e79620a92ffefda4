# SPDX-License-Identifier: Apache-2.0
"""From a model's outputs to a ModelInferResponse.

Tensors always go raw, one entry for each output in order: the official clients read nothing else (the Python client
cannot reshape typed contents, the C++ client indexes raw contents unchecked). An output that goes to a shared memory
region has an empty entry.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dovetail.errors import DovetailError, EngineError, ErrorCode, InvalidInputError
from dovetail.pb import oip
from dovetail.tensor import NUMPY_DTYPES, Array, TensorSpec, to_raw
from runtime_svc.protocol.classification import top_classes
from runtime_svc.protocol.requested_outputs import OutputForm
from runtime_svc.served_model import ModelFacts
from runtime_svc.shared_memory import RegionWindow

ARTIFACT_PARAMETER = "dovetail_artifact"
FINAL_PARAMETER = "triton_final_response"


class OutputDeliveryError(DovetailError):
    """An output was computed but cannot be put where it was wanted; INTERNAL with its text, as in Triton."""

    code = ErrorCode.ENGINE


def encode_response(
    request: oip.ModelInferRequest,
    facts: ModelFacts,
    outputs: Mapping[str, Array],
    forms: Mapping[str, OutputForm],
) -> oip.ModelInferResponse:
    """The reply: the outputs that were asked for, in the model's order; writes those that go to regions.

    Args:
        request: What is answered.
        facts: Of the model that ran.
        outputs: What it gave.
        forms: Which outputs, and how; from `read_requested_outputs`.

    Raises:
        EngineError: The engine's outputs are not what the model's signature says.
        OutputDeliveryError: A region is too small for its output; then none is written.
    """
    response = oip.ModelInferResponse(model_name=facts.name, model_version=str(facts.version), id=request.id)
    response.parameters[ARTIFACT_PARAMETER].string_param = facts.artifact_key
    deliveries: list[tuple[RegionWindow, memoryview]] = []
    for spec in facts.outputs:
        form = forms.get(spec.name)
        if form is None:
            continue
        array, datatype = _checked(outputs.get(spec.name), spec, facts), spec.datatype
        if form.classes:
            array, datatype = top_classes(array, form.classes, batched=facts.max_batch_size > 0), "BYTES"
        response.outputs.add(name=spec.name, datatype=datatype, shape=array.shape)
        if form.window is None:
            response.raw_output_contents.append(to_raw(array, datatype))
            continue
        response.raw_output_contents.append(b"")
        deliveries.append((form.window, _fitting(spec.name, _raw_view(array, datatype), form.window)))
    _deliver(deliveries)
    return response


def encode_stream_response(response: oip.ModelInferResponse) -> oip.ModelStreamInferResponse:
    """The reply in a stream: marked as the request's last one, which it always is here."""
    response.parameters[FINAL_PARAMETER].bool_param = True
    return oip.ModelStreamInferResponse(infer_response=response)


def encode_stream_error(request_id: str, text: str) -> oip.ModelStreamInferResponse:
    """The reply in a stream to a request that failed: its id and the text, and no tensors."""
    response = oip.ModelInferResponse(id=request_id)
    response.parameters[FINAL_PARAMETER].bool_param = True
    return oip.ModelStreamInferResponse(error_message=text, infer_response=response)


def _checked(array: Array | None, spec: TensorSpec, facts: ModelFacts) -> Array:
    if array is None or (spec.datatype != "BYTES" and array.dtype != NUMPY_DTYPES[spec.datatype]):
        got = "nothing" if array is None else f"an array of {array.dtype}"
        raise EngineError(f"engine '{facts.engine}' gave {got} for output '{spec.name}' of datatype {spec.datatype}")
    return array


def _raw_view(array: Array, datatype: str) -> memoryview:
    """The raw bytes of an array, without a copy if it lies in one piece."""
    if datatype == "BYTES":
        return memoryview(to_raw(array, datatype))
    return np.ascontiguousarray(array, dtype=NUMPY_DTYPES[datatype]).reshape(-1).view(np.uint8).data


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
