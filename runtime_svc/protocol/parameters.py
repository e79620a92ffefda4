# SPDX-License-Identifier: Apache-2.0
"""Named parameters of requests, tensors and repository calls: which are known, and of which type.

Unknown `triton_*` names are refused, as Triton does; other unknown names are the caller's own and are let through
without effect. What a parameter does is said where it is used.

Source: Triton Inference Server, parameters and schedule policy extensions; texts of its gRPC front end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dovetail.errors import InvalidInputError
from dovetail.pb import oip
from runtime_svc.model_control import LoadOverride
from runtime_svc.scheduling.request import SequenceStep

EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"

_TYPES: Mapping[str, tuple[str, ...]] = {
    "sequence_id": ("int64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("int64_param", "uint64_param"),
    "timeout": ("int64_param",),
    EMPTY_FINAL_RESPONSE: ("bool_param",),
}
_VERSION, _CONFIG, _FILE = "dovetail_version", "config", "file:"
_CUSTOM_TYPES = ("int64_param", "bool_param", "string_param", "double_param")


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Parameters of an inference request that have an effect here.

    Attributes:
        timeout_us: Longest wait in the queue, in microseconds; 0: as long as the caller waits.
        priority: 1 is first; 0: the model's default.
        sequence: Which sequence it belongs to; None if it names none.
        empty_final: The caller of a decoupled model wants to be told that there are no more replies.
    """

    timeout_us: int = 0
    priority: int = 0
    sequence: SequenceStep | None = None
    empty_final: bool = False


_NO_OPTIONS = RequestOptions()


def read_request_options(parameters: Mapping[str, oip.InferParameter]) -> RequestOptions:
    """Check the parameters of a request and read those that matter; what a model does not have, it ignores.

    Raises:
        InvalidInputError: One has a value of the wrong type or range, or a reserved name.
    """
    if not parameters:
        return _NO_OPTIONS
    for name, value in parameters.items():
        _check_type(name, value)
    timeout_us = parameters["timeout"].int64_param if "timeout" in parameters else 0
    if timeout_us < 0:
        raise InvalidInputError(f"invalid value for 'timeout', expected value >= 0, got {timeout_us}")
    return RequestOptions(
        timeout_us=timeout_us,
        priority=_priority(parameters),
        sequence=_sequence(parameters),
        empty_final=EMPTY_FINAL_RESPONSE in parameters and parameters[EMPTY_FINAL_RESPONSE].bool_param,
    )


def _priority(parameters: Mapping[str, oip.InferParameter]) -> int:
    if "priority" not in parameters:
        return 0
    value = parameters["priority"]
    return value.uint64_param if value.WhichOneof("parameter_choice") == "uint64_param" else value.int64_param


def _sequence(parameters: Mapping[str, oip.InferParameter]) -> SequenceStep | None:
    start, end = (name in parameters and parameters[name].bool_param for name in ("sequence_start", "sequence_end"))
    if "sequence_id" not in parameters:
        return SequenceStep(0, start, end) if start or end else None
    value = parameters["sequence_id"]
    text = value.WhichOneof("parameter_choice") == "string_param"
    return SequenceStep(value.string_param if text else value.int64_param, start, end)


def read_load_parameters(
    parameters: Mapping[str, oip.ModelRepositoryParameter],
) -> tuple[int | None, LoadOverride | None]:
    """The version that a load names, None for the newest, and what it wants otherwise than the model has it.

    Raises:
        InvalidInputError: There is a parameter that nobody knows, or one has a value of the wrong type or range.
    """
    version, config, files = None, "", {}
    for name, value in parameters.items():
        choice = value.WhichOneof("parameter_choice")
        expected = _load_type(name)
        if expected is None:
            raise InvalidInputError(
                f"unrecognized load parameter '{name[:80]}', expected 'config', 'file:<version>/<name>' or '{_VERSION}'"
            )
        if name == _VERSION:
            if choice != expected or value.int64_param < 1:
                raise InvalidInputError(f"invalid value for '{_VERSION}', expected int64_param >= 1.")
            version = value.int64_param
            continue
        if choice != expected:
            raise InvalidInputError(f"invalid value type for load parameter '{name[:80]}', expected {expected}.")
        if name == _CONFIG:
            config = value.string_param
        else:
            files[name.removeprefix(_FILE)] = value.bytes_param
    return version, LoadOverride(config, files) if config or files else None


def read_unload_dependents(parameters: Mapping[str, oip.ModelRepositoryParameter]) -> bool:
    """True if the models that only this pipeline uses are to be unloaded as well.

    Raises:
        InvalidInputError: There is another parameter, or it is not a bool.
    """
    for name, value in parameters.items():
        if name != "unload_dependents":
            raise InvalidInputError(f"unrecognized unload parameter '{name[:80]}', expected 'unload_dependents'")
        if value.WhichOneof("parameter_choice") != "bool_param":
            raise InvalidInputError("invalid value type for 'unload_dependents' parameter, expected bool_param.")
    return "unload_dependents" in parameters and parameters["unload_dependents"].bool_param


def _load_type(name: str) -> str | None:
    """Type of a parameter of a load, as Triton has them."""
    if name.startswith(_FILE):
        return "bytes_param"
    return {_CONFIG: "string_param", _VERSION: "int64_param"}.get(name)


def _check_type(name: str, value: oip.InferParameter) -> None:
    if name.startswith("triton_") and name not in _TYPES:
        raise InvalidInputError(
            "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting"
            f" with 'triton_' are allowed: {EMPTY_FINAL_RESPONSE}"
        )
    allowed = _TYPES.get(name, _CUSTOM_TYPES)
    choice = value.WhichOneof("parameter_choice")
    if choice not in allowed:
        raise InvalidInputError(f"invalid value type for '{name[:80]}' parameter, expected {' or '.join(allowed)}.")
    if name == "priority" and choice == "int64_param" and value.int64_param < 0:
        raise InvalidInputError("invalid value for 'priority', expected value >= 0.")
