# SPDX-License-Identifier: Apache-2.0
"""The users of docs/redis.md on real servers: they may do all that we do, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dovetail.errors import UnavailableError
from dovetail.store.redis_connection import connect
from tests.fakes.redis_cycle import do_the_rest, look_at_everything, storage_on, store_and_build
from tests.fixtures_redis import RedisServer

ROOT = Path(__file__).parents[2]
META, BLOB, BOTH = re.findall(r"```acl\n(.*?)```", (ROOT / "docs" / "redis.md").read_text(), re.DOTALL)


@pytest.fixture
def with_users(redis_factory: Callable[..., RedisServer], tmp_path: Path) -> Callable[[str], str]:
    """Starts a server with the given users; returns its address for user dovetail."""

    def start(acl: str) -> str:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.acl"
        file.write_text(acl)
        password = re.search(r">(\S+)", acl)
        assert password is not None
        return redis_factory("--aclfile", str(file)).url.replace("unix://", f"unix://dovetail:{password[1]}@")

    return start


async def test_two_servers_with_the_documented_users_do_all_that_is_done(
    with_users: Callable[[str], str], tmp_path: Path
) -> None:
    meta, blob = with_users(META), with_users(BLOB)

    async with storage_on(tmp_path / "data", meta, DOVETAIL_BLOB_REDIS_URL=blob) as storage:
        await storage.guard.start()
        await store_and_build(storage)
        await look_at_everything(storage)
        await do_the_rest(storage)


async def test_one_server_with_the_documented_user_does_all_that_is_done(
    with_users: Callable[[str], str], tmp_path: Path
) -> None:
    async with storage_on(tmp_path / "data", with_users(BOTH)) as storage:
        await storage.guard.start()
        await store_and_build(storage)
        await look_at_everything(storage)
        await do_the_rest(storage)


@pytest.mark.parametrize(
    ("acl", "command"),
    [
        (META, ("FLUSHALL",)),
        (META, ("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")),
        (META, ("KEYS", "*")),
        (META, ("GET", "c:0123")),
        (META, ("GET", "other")),
        (BLOB, ("SET", "{dovetail}:meta", "x")),
        (BLOB, ("EVAL", "return 1", 0)),
        (BLOB, ("FLUSHALL",)),
        (BOTH, ("FLUSHALL",)),
        (BOTH, ("SET", "other", "x")),
    ],
)
async def test_what_is_not_ours_is_forbidden_and_said_so(
    with_users: Callable[[str], str], acl: str, command: tuple[str, ...]
) -> None:
    redis = connect(with_users(acl))

    with pytest.raises(
        UnavailableError, match=r"forbids that to our user \(.*\): correct the rights in its ACL"
    ) as caught:
        await redis.call(*command)
    await redis.aclose()

    assert "change-me" not in str(caught.value)


def test_every_command_of_scripts_and_code_is_listed() -> None:
    scripts = "".join(path.read_text() for path in (ROOT / "compiler_svc" / "lua").glob("*.lua"))
    code = "".join(path.read_text() for path in (ROOT / "compiler_svc").rglob("*.py"))
    used = set(re.findall(r"redis\.p?call\('(\w+)'", scripts))
    used |= set(re.findall(r"_redis\.call\(\s*\"([A-Z]+)\"", code))

    for acl in (META, BOTH):
        granted = {word[1:].upper() for word in acl.split() if word.startswith("+")}
        assert sorted(used - granted) == [], "add them to the ACL in docs/redis.md"
