# SPDX-License-Identifier: Apache-2.0
"""How far long work on the store is; told often, so whoever passes it on chooses how often to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One state of long work.

    Attributes:
        phase: What is done: "documents", "chunks", "trash", "index".
        done: Things done of the phase.
        total: Things in all; 0: not known.
        bytes: Content read so far.
        position: Digest before which all is done, for going on later; "" if that is not possible.
    """

    phase: str
    done: int
    total: int = 0
    bytes: int = 0
    position: str = ""


OnProgress = Callable[[Progress], None]
