# SPDX-License-Identifier: Apache-2.0
"""What a measuring process measures, and how it is asked: values with a JSON form. Both sides use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compiler_svc.tuning.space import Settings
from dovetail.contract import Contract
from dovetail.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Subject:
    """An artifact on disk.

    Attributes:
        files: As for `Engine.load`.
        contract: Says what runs it.
        cpu_features: Of this machine.
        hardware_class: Key of this machine's class.
        feeds: Goldens file whose inputs are run.
        baseline: The source model, for the unoptimised baseline; None for none.
        keep_sessions: Sessions that may stay loaded between looks; memory decides.
    """

    files: Mapping[str, Path]
    contract: Contract
    cpu_features: frozenset[str]
    hardware_class: str
    feeds: Path
    baseline: Path | None = None
    keep_sessions: int = 1

    def to_json(self) -> dict[str, Any]:
        """JSON form; `Subject.from_json(s.to_json()) == s`."""
        return {
            "files": {name: str(path) for name, path in self.files.items()},
            "contract": self.contract.to_json(),
            "cpu_features": sorted(self.cpu_features),
            "hardware_class": self.hardware_class,
            "feeds": str(self.feeds),
            "baseline": str(self.baseline) if self.baseline else "",
            "keep_sessions": self.keep_sessions,
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Subject:
        """Read the JSON form.

        Raises:
            InvalidInputError: It is not one.
        """
        try:
            return Subject(
                files={name: Path(path) for name, path in document["files"].items()},
                contract=Contract.from_json(document["contract"]),
                cpu_features=frozenset(document["cpu_features"]),
                hardware_class=document["hardware_class"],
                feeds=Path(document["feeds"]),
                baseline=Path(document["baseline"]) if document["baseline"] else None,
                keep_sessions=int(document["keep_sessions"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise InvalidInputError(f"subject of a measuring process is not readable: {exc!r}") from exc


@dataclass(frozen=True, slots=True)
class Ask:
    """One look.

    Attributes:
        settings: How to load and ask.
        scenario: One of `dovetail.benchmark.SCENARIOS`.
        seconds: For warm-up and windows; a slow model takes longer.
        baseline: Whether the baseline takes turns.
        bound_ms: Bound on the 99th percentile; only for the scenario "server".
        trace: Arrivals to replay instead of searching a rate; only for "server"; "" for none.
    """

    settings: Settings
    scenario: str = "single_stream"
    seconds: float = 1.0
    baseline: bool = False
    bound_ms: float = 0.0
    trace: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON form; `Ask.from_json(a.to_json()) == a`."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Ask:
        """Read the JSON form.

        Raises:
            InvalidInputError: It is not one.
        """
        try:
            return Ask(**{**document, "settings": Settings(**document["settings"])})
        except (KeyError, TypeError) as exc:
            raise InvalidInputError(f"order for a measuring process is not readable: {exc!r}") from exc
