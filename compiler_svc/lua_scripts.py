# SPDX-License-Identifier: Apache-2.0
"""Loads the Lua scripts in `lua/`, each of which is one atomic step in Redis.

`keys.lua` (names and changes) comes first in every script, `jobs.lua` (state of builds) second where builds are
touched, then the file that the step is named after. Plain scripts, not Redis Functions: those need Redis 7.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from dovetail.store.redis_connection import LuaScript


@cache
def index_script(name: str) -> LuaScript:
    """A step of the index; its arguments start at ARGV[1]."""
    return _joined("keys", name)


@cache
def job_script(name: str) -> LuaScript:
    """A step of the job queue; ARGV[1..3] are `QueuePolicy.arguments()`, its own arguments follow."""
    return _joined("keys", "jobs", name)


def _joined(*names: str) -> LuaScript:
    folder = files("compiler_svc").joinpath("lua")
    return LuaScript("\n".join(folder.joinpath(f"{name}.lua").read_text("utf-8") for name in names))
