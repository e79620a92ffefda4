# SPDX-License-Identifier: Apache-2.0
"""What a machine must have for an artifact to run there; re-checked on the device before anything is loaded.

The common part is typed here. What only one engine knows (a TensorRT plan's compute capability, an OpenVINO
blob's ISA string) sits in `details` under names that the engine's rules document. The predicates are in
`dovetail.rules`, one file per engine; this file holds no rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from dovetail.errors import InvalidInputError

Detail = str | int | float | bool | tuple[str, ...] | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Contract:
    """Requirements of one artifact.

    Attributes:
        engine: Engine that runs it, such as "onnxruntime".
        device: Device of that engine, such as "cpu".
        precision: Precision of the arithmetic, as in the recipe.
        arches: CPU architectures that it runs on ("x86_64", "aarch64"); empty means any.
        cpu_features: CPU features that must all be there, in the kernel's spelling ("avx2", "asimddp").
        min_memory_bytes: Memory needed to load and run it, as measured by the build; 0 if not measured.
        details: Engine-specific facts; see the engine's rules for their names. One name means the same everywhere:
            `baseline`, see the property.
    """

    engine: str
    device: str
    precision: str
    arches: frozenset[str] = frozenset()
    cpu_features: frozenset[str] = frozenset()
    min_memory_bytes: int = 0
    details: Mapping[str, Detail] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in self.details.items()}
        object.__setattr__(self, "details", MappingProxyType(frozen))

    def text(self, name: str, default: str = "") -> str:
        """A detail as text."""
        return str(self.details.get(name, default))

    def number(self, name: str, default: int = 0) -> int:
        """A detail as an integer; the default also where it is not a finite number."""
        value = self.details.get(name, default)
        if isinstance(value, float) and not math.isfinite(value):
            return default
        return int(value) if isinstance(value, int | float) else default

    def flag(self, name: str) -> bool:
        """A detail as a truth value; False if absent."""
        return bool(self.details.get(name, False))

    @property
    def baseline(self) -> bool:
        """True for what is only measured for comparison: it is never offered, and no node loads it."""
        return self.flag("baseline")

    def to_json(self) -> dict[str, Any]:
        """JSON form; `Contract.from_json(c.to_json()) == c`."""
        return {
            "engine": self.engine,
            "device": self.device,
            "precision": self.precision,
            "arches": sorted(self.arches),
            "cpu_features": sorted(self.cpu_features),
            "min_memory_bytes": self.min_memory_bytes,
            "details": {k: list(v) if isinstance(v, tuple) else v for k, v in self.details.items()},
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Contract:
        """Read the JSON form.

        Raises:
            InvalidInputError: A field is missing or has the wrong type.
        """
        try:
            return Contract(
                engine=document["engine"],
                device=document["device"],
                precision=document["precision"],
                arches=frozenset(document["arches"]),
                cpu_features=frozenset(document["cpu_features"]),
                min_memory_bytes=int(document["min_memory_bytes"]),
                details=dict(document["details"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as exc:
            raise InvalidInputError(f"contract document is not readable: {exc!r}") from exc
