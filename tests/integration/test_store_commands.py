# SPDX-License-Identifier: Apache-2.0
"""`dovetail store ...` and `push --tenant` against a real service: what people see, what scripts get, exit codes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from compiler_svc.keys import model_document
from dovetail.cli.app import make_app
from dovetail.cli.sizes import parse_part, parse_size
from dovetail.digest import sha256_hex
from dovetail.store.redis_connection import RedisConnection
from tests.fakes.compiler_mesh import DIGITS, Mesh, compiler_mesh, register_digits
from tests.fixtures_redis import RedisServer

Run = Callable[..., Awaitable[Result]]
LEFT_OVER = b"left over" * 100


@pytest.fixture
async def mesh(redis_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    settings = {"DOVETAIL_GC_PERIOD_S": "0", "DOVETAIL_QUOTA_BYTES": "50000000", "DOVETAIL_GC_GRACE_S": "0.1"}
    async with compiler_mesh(redis_url, tmp_path, **settings) as running:
        yield running


@pytest.fixture
def run(mesh: Mesh) -> Run:
    async def call(*words: str) -> Result:
        server = f"127.0.0.1:{mesh.rpc.port}"
        runner = CliRunner(env={"DOVETAIL_SERVER": server, "COLUMNS": "200", "NO_COLOR": "1"})
        return await asyncio.to_thread(runner.invoke, make_app(), list(words), prog_name="dovetail")

    return call


async def told(run: Run, *words: str, code: int = 0) -> Any:
    """The JSON document of a command."""
    result = await run("store", *words, "--json")
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout)


async def test_stats_show_tiers_models_and_tenants(run: Run, mesh: Mesh) -> None:
    await register_digits(mesh)
    await mesh.storage.chunks.put(sha256_hex(LEFT_OVER), LEFT_OVER)

    found = await told(run, "stats")
    shown = await run("store", "stats")

    assert found["unreferenced"]["chunks"] == 1
    assert found["referenced"]["chunks"] == found["durable"]["chunks"] - 1
    assert (found["missing_chunks"], found["trash"]["chunks"], found["hot"]["unavailable"]) == (0, 0, "")
    assert found["hot"]["chunks"] == found["durable"]["chunks"]
    assert found["logical_bytes"] >= found["distinct_bytes"] >= found["stored_bytes"] > 0
    assert [(item["model"], item["versions"], item["tenant"]) for item in found["models"]] == [("digits", 1, "default")]
    (tenant,) = found["tenants"]
    assert (tenant["tenant"], tenant["used_bytes"]) == ("default", found["models"][0]["model_bytes"])
    assert found["documents"]["models"] == 1
    assert shown.exit_code == 0
    assert all(word in shown.stdout for word in ("durable", "unneeded", "hot", "digits", "default", "by zstd"))


async def test_gc_tells_before_it_takes_and_takes_in_two_steps(run: Run, mesh: Mesh) -> None:
    await register_digits(mesh)
    await mesh.storage.chunks.put(sha256_hex(LEFT_OVER), LEFT_OVER)
    await _older_than_the_grace(mesh)

    would = await told(run, "gc", "--dry-run")
    assert (would["dry_run"], would["trashed"]["chunks"]) == (True, 1)
    assert (await mesh.storage.durable.stat(sha256_hex(LEFT_OVER))) is not None

    did = await run("store", "gc")
    assert did.exit_code == 0
    assert "went to the trash" in did.stdout
    assert (await mesh.storage.durable.stat(sha256_hex(LEFT_OVER))) is None
    async with asyncio.timeout(30):
        while not (await told(run, "gc"))["purged"]["chunks"]:  # after one more grace
            await asyncio.sleep(0.05)
    assert (await told(run, "stats"))["missing_chunks"] == 0


async def test_gc_is_refused_while_the_index_is_young(redis_url: str, tmp_path: Path) -> None:
    async with compiler_mesh(redis_url, tmp_path, DOVETAIL_GC_GRACE_S="3600") as mesh:
        await register_digits(mesh)
        runner = CliRunner(env={"DOVETAIL_SERVER": f"127.0.0.1:{mesh.rpc.port}"})

        result = await asyncio.to_thread(runner.invoke, make_app(), ["store", "gc"])

    assert result.exit_code == 1
    assert "nothing is collected before it is 3600 s old (the grace)" in result.stderr


async def test_with_two_servers_the_hot_one_is_counted_alone_and_puts_lost_chunks_right(
    redis_url: str, redis_factory: Callable[..., RedisServer], tmp_path: Path
) -> None:
    blob = redis_factory("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lfu")
    async with compiler_mesh(redis_url, tmp_path, DOVETAIL_BLOB_REDIS_URL=blob.url) as mesh:
        await register_digits(mesh)
        for chunk in list((mesh.settings.store.blob_dir / "cas").glob("??/*")):
            chunk.unlink()
        runner = CliRunner(env={"DOVETAIL_SERVER": f"127.0.0.1:{mesh.rpc.port}"})

        verified = await asyncio.to_thread(runner.invoke, make_app(), ["store", "verify", "--json"])
        shown = await asyncio.to_thread(runner.invoke, make_app(), ["store", "stats", "--json"])

    found, stats = json.loads(verified.stdout), json.loads(shown.stdout)
    assert (verified.exit_code, found["lost"]) == (0, 0)
    assert found["healed"] == stats["durable"]["chunks"] == stats["hot"]["chunks"] > 0
    assert (stats["hot"]["policy"], stats["hot"]["max_memory_bytes"]) == ("allkeys-lfu", 64 << 20)


async def test_verify_ends_with_one_if_something_is_lost_and_says_what_to_do(run: Run, mesh: Mesh) -> None:
    await register_digits(mesh)
    whole = await run("store", "verify")
    assert (whole.exit_code, whole.stdout) == (0, "")
    assert "0 put right, nothing is lost" in whole.stderr

    chunk = next((mesh.settings.store.blob_dir / "cas").glob("??/*"))
    await mesh.storage.blob.call("FLUSHDB")
    chunk.unlink()

    lost = await run("store", "verify", "--sample", "50%")
    found = await told(run, "verify", code=1)

    assert lost.exit_code == 1
    assert "push digits again" in lost.stdout
    assert (found["lost"], found["damages"][0]["name"]) == (1, chunk.name)


async def test_rebuild_puts_in_what_the_index_lacks_and_tells_differences(
    run: Run, mesh: Mesh, redis: RedisConnection
) -> None:
    await register_digits(mesh)
    await redis.call("DEL", "{dovetail}:m:digits:versions", "{dovetail}:quota:used", "{dovetail}:quota:items")
    assert (await told(run, "rebuild"))["restored"] == 1
    assert (await told(run, "quota"))[0]["used_bytes"] > 0

    await mesh.storage.documents.put(model_document("digits", 7), b"\xff\xff")
    await mesh.storage.documents.delete(model_document("digits", 1))
    found = await told(run, "rebuild", code=1)

    assert found["unreadable"] == [model_document("digits", 7)]
    assert found["only_in_index"] == [model_document("digits", 1)]
    assert (await run("store", "rebuild")).exit_code == 1


async def test_quotas_are_shown_and_set_and_a_push_over_them_is_refused_before_a_byte(run: Run, mesh: Mesh) -> None:
    set_to = await run("store", "quota", "team-a", "1kB")
    assert (set_to.exit_code, "1000 B" in set_to.stdout) == (0, True)

    model = str(DIGITS / "digits.onnx")
    refused = await run("push", "digits", model, "--tenant", "team-a")
    assert refused.exit_code == 1
    assert "tenant team-a may store 1000: 0 are used" in refused.stderr
    assert list(mesh.scratch.glob("push-*")) == []
    assert await mesh.storage.index.models() == []

    (reset,) = await told(run, "quota", "team-a", "--default")
    assert (reset["limit_bytes"], reset["own_limit"]) == (50_000_000, False)
    assert (await run("push", "digits", model, "--tenant", "team-a")).exit_code == 0
    (usage,) = await told(run, "quota")
    (record,) = await mesh.storage.index.models()
    assert (usage["tenant"], usage["reserved_bytes"], record.tenant) == ("team-a", 0, "team-a")
    assert usage["used_bytes"] == sum(file.size_bytes for file in record.files)


async def test_wrong_usage_is_told_as_such(run: Run) -> None:
    for words in (
        ("quota", "", "1GB"), ("quota", "a", "1GB", "--default"), ("quota", "a", "much"), ("verify", "--sample", "2"),
        ("verify", "--sample", "0%"),
    ):  # fmt: skip
        assert (await run("store", *words)).exit_code == 2, words
    assert (await run("store", "quota", "Team A", "1GB")).exit_code == 1
    assert (await run("store", "verify", "--after", "x")).exit_code == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("10GB", 10**10), ("1.5 TiB", 3 * 2**39), ("512k", 512_000), ("7", 7), ("0", 0), ("2MiB", 2**21), ("1b", 1)],
)
def test_sizes_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_parts_read_as_people_write_them() -> None:
    assert [parse_part(text) for text in ("5%", "0.05", "100%", "1")] == [0.05, 0.05, 1.0, 1.0]


async def _older_than_the_grace(mesh: Mesh) -> None:
    """Wait until chunks and index are, by their own clocks."""
    began_ms = await mesh.storage.durable.now_ms()
    while await mesh.storage.durable.now_ms() < began_ms + 300:
        await asyncio.sleep(0.02)


async def test_the_same_commands_work_over_an_object_store(redis_url: str, s3_url: str, tmp_path: Path) -> None:
    settings = {"DOVETAIL_BLOB_URL": s3_url, "DOVETAIL_GC_PERIOD_S": "0", "DOVETAIL_GC_GRACE_S": "0.1"}
    async with compiler_mesh(redis_url, tmp_path, **settings) as mesh:
        await register_digits(mesh)
        await mesh.storage.chunks.put(sha256_hex(LEFT_OVER), LEFT_OVER)
        runner = CliRunner(env={"DOVETAIL_SERVER": f"127.0.0.1:{mesh.rpc.port}"})

        async def told_by(command: str, *words: str) -> Any:
            result = await asyncio.to_thread(runner.invoke, make_app(), ["store", command, "--json", *words])
            assert result.exit_code == 0, result.stderr
            return json.loads(result.stdout)

        verified, would = await told_by("verify"), await told_by("gc", "--dry-run")
        await mesh.storage.redis.call("FLUSHALL")
        rebuilt, stats = await told_by("rebuild"), await told_by("stats")

    assert (verified["chunks"], verified["lost"]) == (stats["durable"]["chunks"], 0)
    assert would["trashed"]["chunks"] + would["kept_young"]["chunks"] == stats["unreferenced"]["chunks"] == 1
    assert (rebuilt["unreadable"], rebuilt["only_in_index"], stats["missing_chunks"]) == ([], [], 0)
