# SPDX-License-Identifier: Apache-2.0
"""Settings of a cache node. Read here and nowhere else; a flag of the command line only stands for its variable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dovetail.log import LEVELS
from dovetail.rpc.address import check_address
from dovetail.rpc.chunk_sender import SendLimits
from dovetail.settings import SettingsReader


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """All that can be set; see `from_env` for the names.

    Attributes:
        upstream: Address of the compiler service, or of another cache node.
        address: host:port to serve on; port 0 takes a free one.
        port_file: The port is written here once the node answers, or None.
        data_dir: Directory of its chunks and manifests; nobody else may use it.
        cache_bytes: Most that chunks may take on disk; 0: what the disk has.
        manifest_fresh_s: How long a manifest is served without asking upstream whether it still is the one.
        upstream_bytes_per_s: Most that is taken from upstream; 0: no limit.
        fetch: What handing out chunks may cost.
        stats_s: How often what was saved is logged, if anything was asked for.
        grace_s: How long running calls may go on after SIGTERM.
        log_level: See `dovetail.log.LEVELS`.
        log_json: JSON lines; None: unless on a terminal.
    """

    upstream: str
    address: str
    port_file: Path | None
    data_dir: Path
    cache_bytes: int
    manifest_fresh_s: float
    upstream_bytes_per_s: int
    fetch: SendLimits
    stats_s: float
    grace_s: float
    log_level: str
    log_json: bool | None

    @staticmethod
    def from_env(environ: Mapping[str, str]) -> CacheSettings:
        """Read DOVETAIL_* variables.

        Raises:
            InvalidInputError: Names every bad value, not only the first.
        """
        read = SettingsReader(environ)
        settings = CacheSettings(
            upstream=read.checked("DOVETAIL_COMPILER", "127.0.0.1:7001", check_address),
            address=read.checked("DOVETAIL_CACHE_ADDRESS", "0.0.0.0:7003", check_address),
            port_file=read.optional_path("DOVETAIL_PORT_FILE"),
            data_dir=read.path("DOVETAIL_DATA_DIR", Path("dovetail-cache")),
            cache_bytes=read.integer("DOVETAIL_CACHE_BYTES", 0, low=0, high=1 << 60),
            manifest_fresh_s=read.number("DOVETAIL_MANIFEST_FRESH_S", 10.0, low=0.0, high=86400.0),
            upstream_bytes_per_s=read.integer("DOVETAIL_UPSTREAM_BYTES_PER_S", 0, low=0, high=1 << 40),
            fetch=SendLimits.read(read),
            stats_s=read.number("DOVETAIL_STATS_S", 60.0, low=0.05, high=86400.0),
            grace_s=read.number("DOVETAIL_STOP_GRACE_S", 5.0, low=0.0, high=600.0),
            log_level=read.choice("DOVETAIL_LOG_LEVEL", "info", LEVELS),
            log_json=read.optional_flag("DOVETAIL_LOG_JSON"),
        )
        read.finish()
        return settings
