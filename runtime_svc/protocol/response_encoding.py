# SPDX-License-Identifier: Apache-2.0
"""From a model's outputs to a ModelInferResponse.

Tensors always go raw, one entry for each output in order: the official clients read nothing else (the Python client
cannot reshape typed contents, the C++ client indexes raw contents unchecked).
"""

from __future__ import annotations

from collections.abc import Mapping

from dovetail.errors import EngineError
from dovetail.pb import oip
from dovetail.tensor import NUMPY_DTYPES, Array, to_raw
from runtime_svc.served_model import ModelFacts

ARTIFACT_PARAMETER = "dovetail_artifact"
FINAL_PARAMETER = "triton_final_response"


def encode_response(
    request: oip.ModelInferRequest, facts: ModelFacts, outputs: Mapping[str, Array]
) -> oip.ModelInferResponse:
    """The reply: the outputs that were asked for (all if none was), in the model's order.

    Raises:
        EngineError: The engine's outputs are not what the model's signature says.
    """
    wanted = {output.name for output in request.outputs}
    response = oip.ModelInferResponse(model_name=facts.name, model_version=str(facts.version), id=request.id)
    response.parameters[ARTIFACT_PARAMETER].string_param = facts.artifact_key
    for spec in facts.outputs:
        if wanted and spec.name not in wanted:
            continue
        array = outputs.get(spec.name)
        if array is None or (spec.datatype != "BYTES" and array.dtype != NUMPY_DTYPES[spec.datatype]):
            got = "nothing" if array is None else f"an array of {array.dtype}"
            raise EngineError(
                f"engine '{facts.engine}' gave {got} for output '{spec.name}' of datatype {spec.datatype}"
            )
        response.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        response.raw_output_contents.append(to_raw(array, spec.datatype))
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
