# SPDX-License-Identifier: Apache-2.0
"""How to build an artifact: engine, device, precision and fully defaulted options.

A recipe is part of the artifact key, so it must say everything that changes the bytes: options are written out with
their defaults resolved, else a new default would change the meaning of an old key (Olive issue 1936 is one cache entry
for two models). What lives here is the value only; which recipes a machine can use is said by `dovetail.rules`, how
one is built by `compiler_svc.backends`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from dovetail.digest import check_name, digest_of
from dovetail.errors import InvalidInputError

WEIGHT_BITS = {"fp32": 32, "tf32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "int4": 4}
"""Precision -> bits of a weight as stored."""

PRECISIONS = tuple(WEIGHT_BITS)

Option = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to build a model.

    Attributes:
        name: Unique within all engines and stable, such as "ort-int8-static-u8s8-rr"; users type it.
        engine: Engine that will run the result, such as "onnxruntime"; a string on the wire, so that an old agent can
            refuse an unknown one by name.
        device: Device of that engine: "cpu", "cuda", "gpu", "npu".
        precision: One of PRECISIONS: what the arithmetic of the heavy layers is, which selects the gate's thresholds.
        options: Everything else that changes the bytes or the way they run, defaults resolved.
        excluded_nodes: Names of graph nodes kept in float.
        needs_calibration: True if it cannot be built without calibration samples.
    """

    name: str
    engine: str
    device: str
    precision: str
    options: Mapping[str, Option] = field(default_factory=dict)
    excluded_nodes: tuple[str, ...] = ()
    needs_calibration: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, "recipe name")
        check_name(self.engine, "engine name")
        check_name(self.device, "device name")
        if self.precision not in PRECISIONS:
            raise InvalidInputError(f"recipe {self.name}: precision {self.precision!r} is not one of {PRECISIONS}")
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def to_json(self) -> dict[str, Any]:
        """JSON form; `Recipe.from_json(r.to_json()) == r`."""
        return {
            "name": self.name,
            "engine": self.engine,
            "device": self.device,
            "precision": self.precision,
            "options": dict(self.options),
            "excluded_nodes": list(self.excluded_nodes),
            "needs_calibration": self.needs_calibration,
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Recipe:
        """Read the JSON form.

        Raises:
            InvalidInputError: A field is missing or not allowed.
        """
        try:
            return Recipe(
                name=document["name"],
                engine=document["engine"],
                device=document["device"],
                precision=document["precision"],
                options=dict(document["options"]),
                excluded_nodes=tuple(document["excluded_nodes"]),
                needs_calibration=bool(document["needs_calibration"]),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise InvalidInputError(f"recipe document is not readable: {exc!r}") from exc

    def digest(self) -> str:
        """Digest of everything above."""
        return digest_of(self.to_json())
