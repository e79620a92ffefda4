# SPDX-License-Identifier: Apache-2.0
"""Where every random choice of the fault suite comes from: one seed for each round, printed when a round fails.

`DOVETAIL_FAULT_SEED=<seed> pytest tests/faults -k <test>` plays a round again: the same models, the same order of
calls, the same targets after the same number of answers. What the operating system decides (which process runs first)
is not in it, so a rare race may take a few tries.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

SEED_VARIABLE = "DOVETAIL_FAULT_SEED"


def seeds(count: int) -> list[int]:
    """So many fresh seeds, or the one that the environment asks for."""
    asked = os.environ.get(SEED_VARIABLE)
    return [int(asked)] if asked else [secrets.randbits(32) for _ in range(count)]


@contextmanager
def replayable(seed: int) -> Iterator[None]:
    """Says, when the block fails, how to run it again."""
    try:
        yield
    except Exception as exc:
        exc.add_note(f"seed {seed}; again with {SEED_VARIABLE}={seed} and this test's name")
        raise


def session_seed() -> int:
    """One seed for a run that draws everything from it, such as the soak."""
    return seeds(1)[0]
