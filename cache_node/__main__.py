# SPDX-License-Identifier: Apache-2.0
"""`python -m cache_node`: keep the artifacts of a site here, so that its devices pull each chunk over the WAN once.

Exit codes: 0 stopped on purpose, 1 could not start or a bug, 2 bad settings.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from cache_node.server import serving
from cache_node.settings import CacheSettings
from dovetail.errors import InvalidInputError
from dovetail.log import configure
from dovetail.rpc.lifecycle import run_until_stopped

FLAGS = {
    "compiler": ("DOVETAIL_COMPILER", "address of the compiler service or of another cache node, host:port"),
    "address": ("DOVETAIL_CACHE_ADDRESS", "where to serve, host:port; port 0 takes a free one"),
    "data-dir": ("DOVETAIL_DATA_DIR", "directory of the site's chunks; nobody else may use it"),
    "cache-bytes": ("DOVETAIL_CACHE_BYTES", "most that chunks may take on disk; 0: what the disk has"),
    "port-file": ("DOVETAIL_PORT_FILE", "write the port here once the node answers"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cache node until it is stopped."""
    flags = _read_flags(arguments)
    try:
        settings = CacheSettings.from_env({**os.environ, **flags})
    except InvalidInputError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    configure("cache", json=settings.log_json, level=settings.log_level)
    return run_until_stopped(lambda stop: _serve(settings, stop))


def _read_flags(arguments: Sequence[str] | None) -> dict[str, str]:
    parser = argparse.ArgumentParser(prog="python -m cache_node", description=__doc__.splitlines()[0])
    for flag, (variable, text) in FLAGS.items():
        parser.add_argument(f"--{flag}", dest=variable, help=f"{text} ({variable})")
    return {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}


async def _serve(settings: CacheSettings, stop: asyncio.Event) -> None:
    async with serving(settings):
        await stop.wait()


if __name__ == "__main__":
    sys.exit(main())
