# SPDX-License-Identifier: Apache-2.0
"""Which settings are worth a look: threads, streams and batch, bounded by cores and by what the model allows. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.offer import Objective


@dataclass(frozen=True, slots=True, order=True)
class Settings:
    """How an artifact is loaded and asked.

    Attributes:
        threads: For one inference.
        streams: Inferences at once.
        batch: Rows in each.
    """

    threads: int
    streams: int = 1
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.threads} threads x {self.streams} streams x batch {self.batch}"


@dataclass(frozen=True, slots=True, order=True)
class Arm:
    """What a search chooses among: one artifact with settings."""

    artifact: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class Space:
    """The settings of one artifact.

    Attributes:
        pairs: Threads and streams, the most promising first.
        batches: In rising order, from 1.
    """

    pairs: tuple[tuple[int, int], ...]
    batches: tuple[int, ...] = (1,)

    def settings(self) -> tuple[Settings, ...]:
        """All of them: what an exhaustive search would measure."""
        return tuple(Settings(threads, streams, batch) for batch in self.batches for threads, streams in self.pairs)


def space_for(objective: Objective, *, cores: int, max_batch_size: int) -> Space:
    """The settings that may be best for an objective.

    Latency is one request at a time, so only the threads vary: all cores first, then powers of two below, because small
    models lose more to hand-overs than they win. Throughput also varies streams and batch: threads x streams lies
    between half of the cores and all of them (fewer leave work undone, more only take turns), batches are powers of two
    up to what the artifact allows. For memory and size nothing is searched.

    Args:
        objective: What is optimised.
        cores: Usable cores of this machine.
        max_batch_size: As in the manifest; 0: requests must not be batched.
    """
    threads = sorted({cores, *_powers(cores)}, reverse=True)
    if objective is Objective.LATENCY:
        return Space(tuple((count, 1) for count in threads))
    if objective is not Objective.THROUGHPUT:
        return Space(((cores, 1),))
    pairs = {
        (count, streams)
        for count in threads
        for streams in {*_powers(max(1, cores // count)), max(1, cores // count)}
        if 2 * count * streams >= cores
    }
    ordered = sorted(pairs, key=lambda pair: (-pair[0] * pair[1], pair[0]))
    return Space(tuple(ordered), _powers(max(1, max_batch_size)))


def _powers(most: int) -> tuple[int, ...]:
    return tuple(1 << bits for bits in range(most.bit_length()))
