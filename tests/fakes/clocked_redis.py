# SPDX-License-Identifier: Apache-2.0
"""Redis' clock in a test's hand: the scripts are those of production, but read the time from a key.

There is no such key in production, so there nothing can turn the clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from compiler_svc import lua_scripts
from compiler_svc.keys import Keys
from dovetail.store.redis_connection import LuaScript, RedisConnection

_CLOCK = Keys().prefix + "test:clock"
_READS_TIME = "local time = redis.call('TIME')"
_READS_KEY = (
    f"local ms = tonumber(redis.call('GET', '{_CLOCK}')) local time = {{math.floor(ms / 1000), ms % 1000 * 1000}}"
)


@contextmanager
def scripts_read_the_clock_from_a_key(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While the block runs every script does."""
    joined = lua_scripts._joined

    def patched(*names: str) -> LuaScript:
        text = joined(*names).text
        assert _READS_TIME in text
        return LuaScript(text.replace(_READS_TIME, _READS_KEY))

    monkeypatch.setattr(lua_scripts, "_joined", patched)
    _forget_scripts()
    try:
        yield
    finally:
        monkeypatch.undo()
        _forget_scripts()


async def set_clock(redis: RedisConnection, now_ms: int) -> None:
    """Turn it."""
    await redis.call("SET", _CLOCK, now_ms)


def _forget_scripts() -> None:
    lua_scripts.index_script.cache_clear()
    lua_scripts.job_script.cache_clear()
