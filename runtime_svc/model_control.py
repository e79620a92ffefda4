# SPDX-License-Identifier: Apache-2.0
"""What takes models into and out of service on a caller's demand, and what a caller may want of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class LoadOverride:
    """What a caller loads a model with.

    Attributes:
        config: Configuration in Triton's form, JSON; "" for the model's own.
        files: Path below the model's folder -> content; they replace all of its versions.
    """

    config: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)


class ModelControl(Protocol):
    """Takes models into and out of service on a caller's demand; the acquire layer is one."""

    async def load(self, name: str, version: int | None, override: LoadOverride | None = None) -> None:
        """Have that model (its newest version if None) in service when this returns.

        Args:
            name: Of the model.
            version: Of the model.
            override: What the caller wants otherwise than the model has it; kept until it is unloaded.

        Raises:
            DovetailError: It could not be; what served before still serves.
        """
        ...

    async def unload(self, name: str, *, dependents: bool = False) -> None:
        """Have no version of that model in service when this returns.

        Args:
            name: Of the model.
            dependents: Of a pipeline: also of the models that only it uses.

        Raises:
            NotFoundError: It is not known here.
        """
        ...
