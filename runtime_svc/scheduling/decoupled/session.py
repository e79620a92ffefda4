# SPDX-License-Identifier: Apache-2.0
"""What a session must be able to do for a decoupled model.

Source: Triton Inference Server, decoupled backends and models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from dovetail.engines.base import Session
from dovetail.errors import UnsupportedError
from dovetail.tensor import Array
from runtime_svc.scheduling.base import SchedulerParts


class DecoupledSession(Session, Protocol):
    """A session whose runs give any number of replies."""

    decoupled: bool

    def run_decoupled(self, feeds: Mapping[str, Array], emit: Callable[[Mapping[str, Array]], None]) -> None:
        """Run once.

        Args:
            feeds: As for `run`.
            emit: Takes a reply; blocks while nobody reads, and raises when the caller is gone.
        """
        ...


def check_decoupled(parts: SchedulerParts) -> None:
    """See that the sessions of a model that is configured as decoupled can give any number of replies.

    Raises:
        UnsupportedError: A session gives one reply only.
    """
    for session in parts.sessions:
        if not getattr(session, "decoupled", False):
            raise UnsupportedError(
                f"model '{parts.facts.name}' is configured as decoupled, but engine '{parts.facts.engine}' gives"
                " one reply to each request"
            )
