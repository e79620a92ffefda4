# SPDX-License-Identifier: Apache-2.0
"""Which outputs a request asks for, and in which form: in the reply, in a shared memory region, or as classes.

Checked before the request is queued, so that nothing is run for a reply that could not be given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dovetail.errors import InvalidInputError
from dovetail.pb import oip
from runtime_svc.model_facts import ModelFacts
from runtime_svc.protocol.classification import check_classifiable
from runtime_svc.protocol.region_parameters import Parameters, read_window
from runtime_svc.shared_memory import RegionWindow, SharedMemoryRegions

CLASSIFICATION = "classification"


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How an output is to be given.

    Attributes:
        window: Where its bytes go; None: into the reply.
        classes: How many classes to give instead of it; 0: the output itself.
    """

    window: RegionWindow | None = None
    classes: int = 0


def read_requested_outputs(
    outputs: Sequence[oip.ModelInferRequest.InferRequestedOutputTensor], facts: ModelFacts, regions: SharedMemoryRegions
) -> dict[str, OutputForm]:
    """Name -> form of each output that is asked for; all outputs, in the reply, if none is.

    Raises:
        InvalidInputError: The model has no such output, or its parameters are wrong or contradict each other.
        NotFoundError: There is no such region.
    """
    datatypes = {spec.name: spec.datatype for spec in facts.outputs}
    if not outputs:
        return dict.fromkeys(datatypes, OutputForm())
    forms: dict[str, OutputForm] = {}
    for output in outputs:
        if output.name not in datatypes:
            raise InvalidInputError(f"unexpected inference output '{output.name[:200]}' for model '{facts.name}'")
        if output.name in forms:
            raise InvalidInputError(f"output '{output.name}' already exists in request")
        form = OutputForm(read_window(output, regions), _read_classes(output.parameters))
        if form.classes:
            if form.window is not None:
                raise InvalidInputError("output can't set both 'shared_memory_region' and 'classification'")
            check_classifiable(datatypes[output.name])
        forms[output.name] = form
    return forms


def bytes_to_regions(forms: Mapping[str, OutputForm]) -> int:
    """Most bytes that go into regions."""
    return sum(form.window.byte_size for form in forms.values() if form.window is not None)


def _read_classes(parameters: Parameters) -> int:
    if CLASSIFICATION not in parameters:
        return 0
    value = parameters[CLASSIFICATION]
    if value.WhichOneof("parameter_choice") != "int64_param":
        raise InvalidInputError("invalid value type for 'classification' parameter, expected int64_param")
    if value.int64_param <= 0:
        raise InvalidInputError("invalid value for 'classification' parameter, expected >= 1")
    return value.int64_param
