# SPDX-License-Identifier: Apache-2.0
"""Settings that the compiler service and its workers share; what only one of them has is in its own `settings.py`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from compiler_svc.collection.quota import MAX_LIMIT_BYTES
from dovetail.settings import SettingsReader
from dovetail.store.object_address import ObjectAddress
from dovetail.store.redis_address import RedisAddress


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where state is kept; the same for the service and its workers.

    Attributes:
        redis_url: Address of the Redis that keeps index and jobs; see `dovetail.store.redis_address`.
        blob_redis_url: Address of the one that keeps copies of chunks; equal if one server does both.
        blob_dir: Directory of the durable tier, shared by the service and all workers.
        blob_url: s3://bucket/prefix of the durable tier instead of a directory, or "".
        redis_wait_s: How long a starting process waits for Redis before it gives up.
        quota_bytes: What a tenant without a limit of its own may store, in logical bytes; 0: no limit.
    """

    redis_url: str
    blob_redis_url: str
    blob_dir: Path
    blob_url: str
    redis_wait_s: float
    quota_bytes: int = 0

    @staticmethod
    def read(read: SettingsReader) -> StoreSettings:
        """Read DOVETAIL_{REDIS_URL, BLOB_REDIS_URL, REDIS_WAIT_S, DATA_DIR, BLOB_DIR, BLOB_URL, QUOTA_BYTES}."""
        data = read.path("DOVETAIL_DATA_DIR", Path("dovetail-data"))
        redis_url = read.checked("DOVETAIL_REDIS_URL", "redis://127.0.0.1:6379/0", _redis_url)
        return StoreSettings(
            redis_url=redis_url,
            blob_redis_url=read.checked("DOVETAIL_BLOB_REDIS_URL", redis_url, _redis_url),
            blob_dir=read.path("DOVETAIL_BLOB_DIR", data / "blobs"),
            blob_url=read.checked("DOVETAIL_BLOB_URL", "", _object_url),
            redis_wait_s=read.number("DOVETAIL_REDIS_WAIT_S", 60.0, low=0.0, high=3600.0),
            quota_bytes=read.integer("DOVETAIL_QUOTA_BYTES", 0, low=0, high=MAX_LIMIT_BYTES),
        )


def scratch_dir(read: SettingsReader) -> Path:
    """Read DOVETAIL_SCRATCH_DIR; unless set, a folder of ours in the system's temporary directory."""
    temporary = read.path("TMPDIR", Path(tempfile.gettempdir()))
    return read.path("DOVETAIL_SCRATCH_DIR", temporary / "dovetail")


def _redis_url(text: str) -> str:
    RedisAddress.parse(text)
    return text


def _object_url(text: str) -> str:
    if text:
        ObjectAddress.parse(text)
    return text
