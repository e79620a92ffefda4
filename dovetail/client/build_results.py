# SPDX-License-Identifier: Apache-2.0
"""What the SDK's verbs about the queue and its workers return: plain frozen values. Builds are in `results`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from dovetail.client.results import Build


class BuildPriority(StrEnum):
    """Who waits for a build; decides which is taken first, see compiler.proto."""

    INTERACTIVE = "interactive"
    NODE = "node"
    BACKGROUND = "background"


class JobWait(StrEnum):
    """Why a job is not being built."""

    NONE = ""
    NO_WORKER = "no worker"
    WORKERS_BUSY = "workers busy"
    BACK_OFF = "backing off"
    IN_LINE = "in line"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One worker's try at a job.

    Attributes:
        worker: Its id.
        began_ms: Server's clock.
        ended_ms: Server's clock; 0 while it runs.
        why: Why it ended.
    """

    worker: str
    began_ms: int
    ended_ms: int
    why: str


@dataclass(frozen=True, slots=True)
class Job:
    """A build as the queue sees it.

    Attributes:
        build: What is built, for whom, and its state.
        priority: Who waits for it; None for an order that has no worker yet.
        worker: Who builds it, or "".
        wait: Why it waits, in a word.
        why: The same for people.
        able_workers: Live workers that can build it.
        not_before_ms: Until when it backs off; 0 if it does not.
        attempts: The last tries, oldest first.
    """

    build: Build
    priority: BuildPriority | None
    worker: str
    wait: JobWait
    why: str
    able_workers: tuple[str, ...]
    not_before_ms: int
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class JobList:
    """The queue, or its dead jobs, at one moment.

    Attributes:
        jobs: In the order in which they would be taken; the first thousand.
        total: How many there are.
        now_ms: The server's clock then, which all other times of the queue are by.
    """

    jobs: tuple[Job, ...]
    total: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class Worker:
    """A live build worker.

    Attributes:
        id: Its name.
        hardware_class: What it is.
        engines: What it builds for.
        toolchain: "<engine>/<tool>" -> version.
        emulates: CPUs that it can prove artifacts for without being one.
        concurrency: Builds at once.
        draining: It is stopping and takes nothing more.
        silent_ms: Since it was last heard of.
        builds: What it builds now.
    """

    id: str
    hardware_class: str
    engines: tuple[str, ...]
    toolchain: Mapping[str, str]
    emulates: tuple[str, ...]
    concurrency: int
    draining: bool
    silent_ms: int
    builds: tuple[Build, ...]
