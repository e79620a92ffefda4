# SPDX-License-Identifier: Apache-2.0
"""Holds the signature that a push takes for granted against the one that intake found, before anything is registered.

A push from CI says so what its callers rely on. Names, datatypes and shapes of a side that is given must be equal, free
dimensions (-1) included; their order does not count, because tensors are named in every request.
"""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.errors import InvalidInputError
from dovetail.tensor import TensorSpec


def refuse_other_signature(side: str, expected: Sequence[TensorSpec], found: Sequence[TensorSpec]) -> None:
    """Make sure that the model has the expected inputs or outputs.

    Args:
        side: "input" or "output", for messages.
        expected: As the push says; empty expects nothing.
        found: As intake found them.

    Raises:
        InvalidInputError: They differ; the text says where, with both.
    """
    if not expected:
        return
    if sorted(spec.name for spec in expected) != sorted(spec.name for spec in found):
        raise InvalidInputError(
            f"the push expects the {side}s {_names(expected)}, the model has {_names(found)}; nothing was registered"
        )
    actual = {spec.name: spec for spec in found}
    for spec in expected:
        if spec != actual[spec.name]:
            raise InvalidInputError(
                f"the push expects {side} {_text(spec)}, the model has it as {_text(actual[spec.name])};"
                " nothing was registered"
            )


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(repr(spec.name[:80]) for spec in specs[:16]) + (" …" if len(specs) > 16 else "")


def _text(spec: TensorSpec) -> str:
    return f"{spec.name!r} {spec.datatype} {list(spec.shape)}"
