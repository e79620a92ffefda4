# SPDX-License-Identifier: Apache-2.0
"""What is kept for each model so that a request costs little: its signature, checked request forms, reply headers."""

from __future__ import annotations

from collections.abc import Sequence

from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.protocol.request_decoding import RequestForm, decode_arrays, read_form
from runtime_svc.protocol.response_encoding import ResponseEncoder
from runtime_svc.protocol.wire import WireRequest
from runtime_svc.scheduling.request import InferenceRequest
from runtime_svc.served_model import ServedModel
from runtime_svc.shared_memory import SharedMemoryRegions

_MAX_KEPT_FORMS = 256
_MAX_KEPT_BYTES = 2048  # of a form's request: with the bound above, at most half a megabyte of keys for a model


class ModelCodec:
    """Decodes requests to one model. Belongs to the event loop, but for `decode`, which any thread may call.

    Args:
        model: The model.
        regions: Where tensors outside of messages may lie.

    Attributes:
        encoder: Makes the model's replies.
    """

    def __init__(self, model: ServedModel, regions: SharedMemoryRegions) -> None:
        filled = _filled_by_the_scheduler(model.config)
        self._facts = model.facts
        self._specs = tuple(spec for spec in model.facts.inputs if spec.name not in filled)
        self._regions = regions
        self._forms: dict[bytes, RequestForm] = {}
        self._forms_in_regions: dict[bytes, RequestForm] = {}
        self._changes_of_regions = 0
        self.encoder = ResponseEncoder(model.facts, partial=model.decoupled)

    def form(self, wire: WireRequest) -> RequestForm:
        """The request without its tensors' bytes, checked.

        Raises:
            MalformedMessageError: It cannot be parsed.
            InvalidInputError: It does not fit the model.
            NotFoundError: There is no such shared memory region.
        """
        form = self._forms.get(wire.rest)
        if form is not None:
            return form
        if self._changes_of_regions != self._regions.changes:
            self._changes_of_regions = self._regions.changes
            self._forms_in_regions.clear()
        form = self._forms_in_regions.get(wire.rest)
        if form is None:
            form = read_form(wire.parse_rest(), self._facts, self._regions, self._specs)
            if form.reusable and len(wire.rest) <= _MAX_KEPT_BYTES:
                kept = self._forms_in_regions if form.in_regions else self._forms
                if len(kept) >= _MAX_KEPT_FORMS:
                    kept.clear()
                kept[wire.rest] = form
        return form

    def decode(
        self, form: RequestForm, raw: Sequence[bytes | memoryview], deadline_s: float | None
    ) -> InferenceRequest:
        """What the scheduler is to run.

        Raises:
            InvalidInputError: The tensors' bytes do not fit the form.
        """
        options = form.options
        return InferenceRequest(
            decode_arrays(form, raw, self._facts.name),
            form.rows,
            deadline_s,
            options.timeout_us,
            options.priority,
            options.sequence,
            form.asked,
        )


def _filled_by_the_scheduler(config: ServingConfig) -> frozenset[str]:
    """Inputs that no caller gives: what tells a model where its sequences begin and end, and their states."""
    sequences = config.sequences
    if sequences is None:
        return frozenset()
    controls = (control.name for control in sequences.controls)
    states = (state.input_name for state in sequences.states)
    return frozenset((*controls, *states))
