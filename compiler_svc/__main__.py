# SPDX-License-Identifier: Apache-2.0
"""`python -m compiler_svc`: start the compiler service and run it until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compiler_svc.server import serving
from compiler_svc.settings import CompilerSettings
from compiler_svc.storage import open_storage, wait_for_redis
from dovetail.clock import SystemClock
from dovetail.errors import DovetailError
from dovetail.log import configure
from dovetail.rpc.address import check_address
from dovetail.rpc.lifecycle import run_until_stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service; returns 0 after a stop by signal, 2 for bad settings, 1 for anything else."""
    try:
        settings = _settings(arguments)
        configure("compiler", json=settings.log_json, level=settings.log_level)
    except DovetailError as exc:
        print(f"compiler service: {exc}", file=sys.stderr)
        return 2
    return run_until_stopped(lambda stop: _serve(settings, stop))


def _settings(arguments: Sequence[str] | None) -> CompilerSettings:
    parser = argparse.ArgumentParser("python -m compiler_svc", description=__doc__)
    parser.add_argument("--address", help="host:port to serve on; port 0 takes a free one")
    parser.add_argument("--port-file", type=Path, help="write the port here once the service answers")
    flags = parser.parse_args(arguments)
    settings = CompilerSettings.from_env(os.environ)
    if flags.address:
        settings = replace(settings, address=check_address(flags.address, "--address"))
    if flags.port_file:
        settings = replace(settings, port_file=flags.port_file)
    return settings


async def _serve(settings: CompilerSettings, stop: asyncio.Event) -> None:
    storage = open_storage(settings.store)
    try:
        if await wait_for_redis(storage.redis, stop, wait_s=settings.store.redis_wait_s):
            await storage.guard.start()
            async with serving(settings, storage, SystemClock()):
                await stop.wait()
    finally:
        await storage.aclose()


if __name__ == "__main__":
    sys.exit(main())
