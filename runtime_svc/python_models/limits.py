# SPDX-License-Identifier: Apache-2.0
"""What the process of a Python model may take, read from the model's own parameters. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dovetail.errors import InvalidInputError

PREFIX = "dovetail.python."


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """Each attribute is a parameter of the model's configuration, with `dovetail.python.` in front of its name.

    Attributes:
        memory_mb: Address space in MiB; 0: no limit of its own. Libraries reserve far more than they use.
        open_files: Most open files.
        load_s: Longest time to start and load, in seconds.
        infer_s: Longest time to one reply; 0: none. A process that takes longer is ended and started again.
        unload_s: Longest time to unload; then the process is ended.
        environment: Names of environment variables, with commas, that it gets beside the usual ones.
    """

    memory_mb: int = 0
    open_files: int = 1024
    load_s: int = 120
    infer_s: int = 0
    unload_s: int = 10
    environment: tuple[str, ...] = ()

    @staticmethod
    def from_parameters(parameters: Mapping[str, str]) -> ProcessLimits:
        """Read them.

        Raises:
            InvalidInputError: A name with the prefix is not known, or a value is not a number.
        """
        numbers: dict[str, int] = {}
        environment: tuple[str, ...] = ()
        for parameter, text in parameters.items():
            name = parameter.removeprefix(PREFIX)
            if name == parameter:
                continue
            if name == "environment":
                environment = tuple(part.strip() for part in text.split(",") if part.strip())
            elif name not in _NUMBERS:
                raise InvalidInputError(
                    f"parameter '{parameter}' is not known; those of Python models are"
                    f" {', '.join(PREFIX + known for known in (*_NUMBERS, 'environment'))}"
                )
            elif not (text.isascii() and text.isdigit() and len(text) < 10):
                raise InvalidInputError(f"parameter '{parameter}' is {text[:40]!r}; expected a whole number")
            else:
                numbers[name] = int(text)
        return ProcessLimits(**numbers, environment=environment)


_NUMBERS = ("memory_mb", "open_files", "load_s", "infer_s", "unload_s")
