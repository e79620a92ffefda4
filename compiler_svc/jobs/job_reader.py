# SPDX-License-Identifier: Apache-2.0
"""Looking at jobs and workers without changing them: one build, all builds, the queue, who builds what.

A look is not one step in Redis but a few, so a job may have moved on between them; each job is shown as it was read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from compiler_svc.jobs.base import Overview
from compiler_svc.jobs.policy import QueuePolicy
from compiler_svc.jobs.record import ENDED, State, attempts_of, build_of, read_state
from compiler_svc.keys import Keys
from compiler_svc.lua_scripts import job_script
from dovetail.digest import check_name
from dovetail.pb.v1 import compiler_pb2 as pb
from dovetail.pb.v1.storage_pb2 import BuildJob, WorkerRecord
from dovetail.store.redis_connection import Part, RedisConnection, Reply

MAX_LISTED = 1000
"""Jobs in one overview."""

_PAGE = 200  # builds read in one step: short enough not to hold up others

_Job = tuple[BuildJob, State]


class JobReader:
    """Reads jobs and workers; safe for concurrent calls. Each raises UnavailableError if Redis does not answer."""

    def __init__(self, redis: RedisConnection, keys: Keys, policy: QueuePolicy) -> None:
        self._redis = redis
        self._keys = keys
        self._policy = policy

    async def get(self, artifact_key: str) -> pb.Build | None:
        """See `JobQueue.get`."""
        return (await self._builds([artifact_key]))[0]

    async def builds(self, model: str = "", version: int = 0) -> Sequence[pb.Build]:
        """See `JobQueue.list`."""
        builds = await (self._of_model(model, version) if model else self._all())
        return sorted(builds, key=lambda build: (-build.created_at_ms, build.artifact_key))

    async def workers(self) -> Sequence[WorkerRecord]:
        """See `JobQueue.workers`."""
        flat = await self._run("workers")
        found = []
        for record, until_ms in zip(flat[::2], flat[1::2], strict=True):
            worker = WorkerRecord.FromString(record)
            worker.last_seen_ms = int(until_ms) - self._policy.worker_ttl_ms
            found.append(worker)
        return sorted(found, key=lambda worker: worker.id)

    async def overview(self, *, dead: bool = False, hardware_class: str = "") -> Overview:
        """See `JobQueue.overview`."""
        now, running, waiting, groups, died = await self._run("overview")
        if dead:
            jobs = [_dead(job) for job in await self._jobs(died)]
        else:
            able = [[worker.decode() for worker in group] for group in groups]
            groups_of = {key: able[int(group)] for key, group in zip(waiting[::2], waiting[1::2], strict=True)}
            leases = {key.decode(): int(until) for key, until in zip(running[::2], running[1::2], strict=True)}
            begun = await self._jobs(running[::2])
            busy = Counter(job[1].get(b"worker", b"").decode() for job in begun)
            room = {worker.id: max(1, worker.concurrency) - busy[worker.id] for worker in await self.workers()}
            lined_up = await self._jobs(groups_of)
            jobs = [_running(job, leases) for job in begun]
            jobs += [
                _waiting(job, groups_of[job[0].artifact_key.encode()], room, int(now))
                for job in lined_up
                if int(job[1][b"phase"]) not in ENDED
            ]
        shown = [job for job in jobs if job.build.hardware_class.startswith(hardware_class)]
        return Overview(tuple(shown[:MAX_LISTED]), len(shown), int(now))

    async def staff(self) -> Sequence[pb.Worker]:
        """See `JobQueue.staff`."""
        now, running, *_ = await self._run("overview")
        begun = await self._jobs(running[::2])
        return [
            pb.Worker(
                id=worker.id,
                hardware_class=worker.hardware_class,
                engines=worker.engines,
                toolchain=worker.toolchain,
                emulates=[item.name for item in worker.emulates],
                concurrency=max(1, worker.concurrency),
                draining=worker.draining,
                last_seen_ms=worker.last_seen_ms,
                now_ms=int(now),
                builds=[_listed(job) for job in begun if job[1].get(b"worker", b"").decode() == worker.id],
            )
            for worker in await self.workers()
        ]

    async def _run(self, name: str, *arguments: Part) -> Reply:
        return await self._redis.run(job_script(name), self._keys.prefix, *self._policy.arguments(), *arguments)

    async def _entries(self, artifact_keys: Sequence[Part]) -> list[_Job | pb.Build | None]:
        found: list[_Job | pb.Build | None] = []
        for start in range(0, len(artifact_keys), _PAGE):
            _, *entries = await self._run("snapshot", *artifact_keys[start : start + _PAGE])
            found += [read_state(entry) for entry in entries]
        return found

    async def _jobs(self, artifact_keys: Iterable[bytes]) -> list[_Job]:
        """Those of the jobs that there still are."""
        return [entry for entry in await self._entries(list(artifact_keys)) if isinstance(entry, tuple)]

    async def _builds(self, artifact_keys: Sequence[str]) -> Sequence[pb.Build | None]:
        entries = await self._entries(artifact_keys)
        return [build_of(*entry) if isinstance(entry, tuple) else entry for entry in entries]

    async def _all(self) -> Sequence[pb.Build]:
        ordered, published = await self._redis.call_all(
            [("ZRANGE", self._keys.jobs, 0, -1), ("HKEYS", self._keys.digests)]
        )
        keys = sorted({key.decode() for key in (*ordered, *published)})
        return [build for build in await self._builds(keys) if build is not None]

    async def _of_model(self, model: str, version: int) -> Sequence[pb.Build]:
        members = await self._redis.call("HKEYS", self._keys.artifacts(check_name(model, "model name")))
        links = [(int(number), key) for number, _, key in (member.decode().partition("/") for member in members)]
        wanted = [link for link in links if version in (0, link[0])]
        builds = []
        for (number, _), build in zip(wanted, await self._builds([key for _, key in wanted]), strict=True):
            if build is not None:
                build.model, build.version = model, number
                builds.append(build)
        return builds


def _listed(job: _Job) -> pb.Build:
    """A build as lists show it: the long texts are for who asks for that build."""
    build = build_of(*job)
    build.ClearField("layers_json")
    build.ClearField("log_tail")
    return build


def _running(job: _Job, leases: Mapping[str, int]) -> pb.Job:
    state = job[1]
    return pb.Job(
        build=_listed(job),
        worker=state.get(b"worker", b"").decode(),
        lease_until_ms=leases.get(job[0].artifact_key, 0),
        attempts=attempts_of(state),
    )


def _dead(job: _Job) -> pb.Job:
    return pb.Job(build=_listed(job), not_before_ms=int(job[1].get(b"not_before", 0)), attempts=attempts_of(job[1]))


def _waiting(job: _Job, able: Sequence[str], room: Mapping[str, int], now_ms: int) -> pb.Job:
    build, state = _listed(job), job[1]
    shown = pb.Job(build=build, able_workers=able, attempts=attempts_of(state))
    not_before_ms = int(state.get(b"not_before", 0))
    if not able:
        shown.wait, shown.why = pb.JOB_WAIT_NO_WORKER, build.message
    elif not_before_ms > now_ms:
        shown.wait, shown.not_before_ms = pb.JOB_WAIT_BACK_OFF, not_before_ms
        shown.why = f"backs off for {(not_before_ms - now_ms + 999) // 1000} s after it lost its workers"
    elif not any(room.get(worker, 0) > 0 for worker in able):
        shown.wait = pb.JOB_WAIT_WORKERS_BUSY
        shown.why = f"the one worker that can build it ({able[0]}) is busy" if len(able) == 1 else (
            f"all {len(able)} workers that can build it are busy"
        )  # fmt: skip
    else:
        shown.wait, shown.why = pb.JOB_WAIT_IN_LINE, "is about to be taken"
    return shown
