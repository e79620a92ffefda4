# SPDX-License-Identifier: Apache-2.0
"""Named parameters of requests, tensors and repository calls: which are known, and of which type.

Unknown `triton_*` names are refused, as Triton does; other unknown names are the caller's own and are let through
without effect. What a parameter does is said where it is used.

Source: Triton Inference Server, parameters and schedule policy extensions; texts of its gRPC front end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dovetail.errors import InvalidInputError, UnsupportedError
from dovetail.pb import oip

EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"

_TYPES: Mapping[str, tuple[str, ...]] = {
    "sequence_id": ("int64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("int64_param", "uint64_param"),
    "timeout": ("int64_param",),
    EMPTY_FINAL_RESPONSE: ("bool_param",),
}
_VERSION = "dovetail_version"
_CUSTOM_TYPES = ("int64_param", "bool_param", "string_param", "double_param")


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Parameters of an inference request that have an effect here.

    Attributes:
        queue_timeout_s: Longest wait in the queue; None: as long as the caller waits.
    """

    queue_timeout_s: float | None = None


def read_request_options(parameters: Mapping[str, oip.InferParameter]) -> RequestOptions:
    """Check the parameters of a request and read those that matter.

    `triton_enable_empty_final_response` is accepted and changes nothing: every request has exactly one reply here,
    and that is marked as final. `priority` and `sequence_*` have no effect on models without them, as in Triton.

    Raises:
        InvalidInputError: One has a value of the wrong type or range, or a reserved name.
    """
    for name, value in parameters.items():
        _check_type(name, value)
    timeout_us = parameters["timeout"].int64_param if "timeout" in parameters else 0
    if timeout_us < 0:
        raise InvalidInputError(f"invalid value for 'timeout', expected value >= 0, got {timeout_us}")
    return RequestOptions(queue_timeout_s=timeout_us / 1e6 if timeout_us else None)


def read_load_version(parameters: Mapping[str, oip.ModelRepositoryParameter]) -> int | None:
    """The version that a load request names, None for the newest.

    Raises:
        InvalidInputError: There is a parameter that nobody knows, or one has a value of the wrong type or range.
        UnsupportedError: A configuration or files are to replace the model's own, which nothing here could verify.
    """
    for name, value in parameters.items():
        choice = value.WhichOneof("parameter_choice")
        if name == _VERSION:
            if choice != "int64_param" or value.int64_param < 1:
                raise InvalidInputError(f"invalid value for '{_VERSION}', expected int64_param >= 1.")
            continue
        expected = _override_type(name)
        if expected is None:
            raise InvalidInputError(f"unrecognized load parameter '{name[:80]}', expected '{_VERSION}'")
        if choice != expected:
            raise InvalidInputError(f"invalid value type for load parameter '{name[:80]}', expected {expected}.")
        raise UnsupportedError(
            f"load parameter '{name[:80]}' is not supported: what is served here was compiled, measured and signed"
            " elsewhere; push the changed model and load its version"
        )
    return parameters[_VERSION].int64_param if _VERSION in parameters else None


def check_unload_parameters(parameters: Mapping[str, oip.ModelRepositoryParameter]) -> None:
    """Accept `unload_dependents`, which has nothing to do here, and nothing else.

    Raises:
        InvalidInputError: There is another parameter, or it is not a bool.
    """
    for name, value in parameters.items():
        if name != "unload_dependents":
            raise InvalidInputError(f"unrecognized unload parameter '{name[:80]}', expected 'unload_dependents'")
        if value.WhichOneof("parameter_choice") != "bool_param":
            raise InvalidInputError("invalid value type for 'unload_dependents' parameter, expected bool_param.")


def _override_type(name: str) -> str | None:
    """Type of a parameter that replaces something of the model, as Triton has them."""
    if name == "config":
        return "string_param"
    return "bytes_param" if name.startswith("file:") else None


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
