# SPDX-License-Identifier: Apache-2.0
"""`dovetail cache-node`: the cache of a site, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def cache_node(
    compiler: Annotated[
        str,
        typer.Option(
            envvar="DOVETAIL_COMPILER", metavar="HOST:PORT", help="Compiler service, or another cache node, above."
        ),
    ] = "127.0.0.1:7001",
    address: Annotated[
        str, typer.Option(envvar="DOVETAIL_CACHE_ADDRESS", metavar="HOST:PORT", help="Where to serve the site.")
    ] = "0.0.0.0:7003",
    data_dir: Annotated[
        Path, typer.Option(envvar="DOVETAIL_DATA_DIR", file_okay=False, metavar="DIR", help="Where chunks are kept.")
    ] = Path("dovetail-cache"),
    cache_bytes: Annotated[
        int,
        typer.Option(envvar="DOVETAIL_CACHE_BYTES", min=0, metavar="N", help="Most on disk; 0: what the disk has."),
    ] = 0,
) -> None:
    """Keep the artifacts of a site here until Ctrl-C.

    An office or plant runs it once; its devices use it as their compiler service (DOVETAIL_COMPILER), or only for
    chunks (DOVETAIL_SOURCES), and each chunk crosses the WAN once. The same as `python -m cache_node`.
    """
    import os
    import sys

    flags = {"compiler": compiler, "address": address, "data-dir": str(data_dir), "cache-bytes": str(cache_bytes)}
    words = [f"--{name}={value}" for name, value in flags.items()]
    os.execv(sys.executable, [sys.executable, "-m", "cache_node", *words])  # noqa: S606 - our own interpreter, no shell
