# SPDX-License-Identifier: Apache-2.0
"""The tensors of a sequence model that no request has: control inputs and implicit states. Checked, and made.

Source: Triton Inference Server, model configuration, `sequence_batching.control_input` and `.state`: controls have one
element for each row; a state's first value is zero unless given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dovetail.engines.base import Session
from dovetail.errors import InvalidInputError
from dovetail.tensor import NUMPY_DTYPES, Array, from_raw
from runtime_svc.configuration.serving_config import ControlInput, ControlKind, SequenceBatching, SequenceState
from runtime_svc.scheduling.request import SequenceStep

_CORRID_DATATYPES = ("UINT64", "INT64", "UINT32", "INT32", "BYTES")
_FLAG_DATATYPES = ("INT32", "FP32", "BOOL")


def check_sequences(sequences: SequenceBatching, session: Session, model: str) -> None:
    """See that the model has the controls and states that its configuration names.

    Raises:
        InvalidInputError: It has not, or a datatype is none that there may be.
    """
    inputs = {spec.name: spec.datatype for spec in session.inputs}
    outputs = {spec.name: spec.datatype for spec in session.outputs}
    for control in sequences.controls:
        allowed = _CORRID_DATATYPES if control.kind is ControlKind.CORRID else _FLAG_DATATYPES
        if control.datatype not in allowed:
            raise InvalidInputError(
                f"unexpected data type {control.datatype} of {control.kind} for model '{model}';"
                f" expected one of {', '.join(allowed)}"
            )
        _check_there(control.name, control.datatype, inputs, f"control input of model '{model}'")
    for state in sequences.states:
        _check_there(state.input_name, state.datatype, inputs, f"state input of model '{model}'")
        _check_there(state.output_name, state.datatype, outputs, f"state output of model '{model}'")
        first_state(state, batched=True)


def control_column(control: ControlInput, rows: Sequence[SequenceStep | None], *, batched: bool) -> Array:
    """A control input for a run; None stands for a row that only fills a place.

    Raises:
        InvalidInputError: A sequence id cannot be told in the control's datatype.
    """
    if control.kind is ControlKind.CORRID:
        return _ids(control, rows).reshape((len(rows), 1) if batched else (1,))
    false, true = control.false_true
    values = [true if _flag(control.kind, step) else false for step in rows]
    column = np.array(values).astype(NUMPY_DTYPES[control.datatype])
    return column.reshape((len(rows), 1) if batched else (1,))


def check_id(control: ControlInput, sequence_id: int | str, model: str) -> None:
    """See that a sequence's id can be told to the model.

    Raises:
        InvalidInputError: It is text and the model takes numbers, or it does not fit them.
    """
    if control.datatype == "BYTES":
        return
    limits = np.iinfo(NUMPY_DTYPES[control.datatype])
    if isinstance(sequence_id, str) or not limits.min <= sequence_id <= limits.max:
        raise InvalidInputError(
            f"inference request for sequence {sequence_id} to model '{model}' has a correlation ID that its"
            f" {control.datatype} input '{control.name}' cannot hold"
        )


def first_state(state: SequenceState, *, batched: bool) -> Array:
    """A state's first value.

    Raises:
        InvalidInputError: The configured bytes do not fit the shape.
    """
    shape = tuple(1 if dim < 0 else dim for dim in state.dims)
    whole = (1, *shape) if batched else shape
    if state.initial is not None:
        return from_raw(state.initial, state.datatype, whole, name=state.input_name)
    if state.datatype == "BYTES":
        empty = np.empty(whole, dtype=object)
        empty.fill(b"")
        return empty
    return np.zeros(whole, dtype=NUMPY_DTYPES[state.datatype])


def _check_there(name: str, datatype: str, tensors: dict[str, str], what: str) -> None:
    if tensors.get(name) != datatype:
        has = f"it has datatype {tensors[name]}" if name in tensors else "the model has no such tensor"
        raise InvalidInputError(f"{what} is configured as '{name}' of datatype {datatype}, but {has}")


def _flag(kind: ControlKind, step: SequenceStep | None) -> bool:
    if step is None:
        return False
    return {ControlKind.START: step.start, ControlKind.END: step.end}.get(kind, True)


def _ids(control: ControlInput, rows: Sequence[SequenceStep | None]) -> Array:
    if control.datatype == "BYTES":
        texts = np.empty(len(rows), dtype=object)
        texts[:] = [b"" if step is None else str(step.sequence_id).encode() for step in rows]
        return texts
    return np.array([0 if step is None else step.sequence_id for step in rows], dtype=NUMPY_DTYPES[control.datatype])
