# SPDX-License-Identifier: Apache-2.0
"""Tables of jobs and workers. All ages are by the server's clock, so that no two clocks need agree."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from dovetail.cli.build_progress import state_text
from dovetail.cli.output import age_text, plain, short_key
from dovetail.cli.tables import plain_table
from dovetail.client import Attempt, Build, Job, JobList, JobWait, Worker

_DIGEST_CHARS = 12


def job_table(found: JobList) -> Table:
    """Jobs that run and wait; the state says who has one, and in which try."""
    table = plain_table("model", "recipe", "job", "class", "priority", "since", "state")
    _keep_whole(table, 6)
    for job in found.jobs:
        build = job.build
        table.add_row(
            *_names(build),
            plain(job.priority or "-"),
            age_text(found.now_ms - build.created_at_ms) if build.created_at_ms else "-",
            Text(_state(job)),
        )
    return table


def dead_table(found: JobList) -> Table:
    """Dead jobs with every try."""
    table = plain_table("model", "recipe", "job", "class", "died", "why", "tries")
    _keep_whole(table, 5)
    for job in found.jobs:
        failure = job.build.failure
        table.add_row(
            *_names(job.build),
            f"{age_text(found.now_ms - job.build.updated_at_ms)} ago",
            Text(f"{failure.code}: {failure.message}" if failure else job.build.message),
            Text("\n".join(_attempt(attempt) for attempt in job.attempts) or "-"),
        )
    return table


def worker_table(workers: Iterable[Worker]) -> Table:
    """Workers with what they can build and what they build."""
    table = plain_table("worker", "class", "engines", "emulates", "heard", "builds")
    for worker in workers:
        doing = [f"{build.model} v{build.version} {build.recipe.name}, {state_text(build)}" for build in worker.builds]
        state = "draining" if worker.draining else "idle"
        table.add_row(
            plain(worker.id),
            plain(_class_front(worker.hardware_class)),
            Text("\n".join(_engine(worker, engine) for engine in worker.engines) or "-"),
            Text("\n".join(worker.emulates) or "-"),
            f"{age_text(worker.silent_ms)} ago",
            Text("\n".join([*doing, *(["draining"] if worker.draining and doing else [])]) or state),
        )
    return table


def _names(build: Build) -> tuple[Text, Text, Text, Text]:
    return (
        plain(f"{build.model} v{build.version}" if build.version else build.model),
        plain(build.recipe.name),
        plain(short_key(build.artifact_key) or "-"),
        plain(_class_front(build.hardware_class)),
    )


def _keep_whole(table: Table, columns: int) -> None:
    """Names and keys are for copying, so they are not broken over lines."""
    for column in table.columns[:columns]:
        column.no_wrap = True


def _class_front(hardware_class: str) -> str:
    """What a class is, without the digest that tells it from others of that kind; the whole key is in --json."""
    front, _, digest = hardware_class.rpartition("-")
    return front if front and len(digest) == _DIGEST_CHARS else hardware_class


def _state(job: Job) -> str:
    if job.wait is not JobWait.NONE:
        return f"{job.build.phase}: {job.why}"
    tries = f", try {job.build.attempts}" if job.build.attempts > 1 else ""
    return f"{state_text(job.build)} on {job.worker}{tries}" if job.worker else state_text(job.build)


def _attempt(attempt: Attempt) -> str:
    lasted = f" after {age_text(attempt.ended_ms - attempt.began_ms)}" if attempt.ended_ms else ""
    return f"{attempt.worker}{lasted}: {attempt.why or 'runs'}"


def _engine(worker: Worker, engine: str) -> str:
    """An engine with its version, or with the tools that build for it; --json has all that enter artifact keys."""
    tools = {
        name.partition("/")[2]: version for name, version in worker.toolchain.items() if name.startswith(f"{engine}/")
    }
    if engine in tools:
        return f"{engine} {tools[engine]}"
    tools = {tool: version for tool, version in tools.items() if not tool.startswith("dovetail-")}
    return (
        f"{engine} ({', '.join(f'{tool} {version}' for tool, version in sorted(tools.items()))})" if tools else engine
    )
