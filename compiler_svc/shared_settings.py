# SPDX-License-Identifier: Apache-2.0
"""Settings that the compiler service and its workers share; what only one of them has is in its own `settings.py`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from dovetail.settings import SettingsReader


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where state is kept; the same for the service and its workers.

    Attributes:
        redis_url: redis://, rediss:// or unix:// address.
        blob_dir: Directory of the durable tier, shared by the service and all workers.
        redis_wait_s: How long a starting process waits for Redis before it gives up.
    """

    redis_url: str
    blob_dir: Path
    redis_wait_s: float

    @staticmethod
    def read(read: SettingsReader) -> StoreSettings:
        """Read DOVETAIL_REDIS_URL, DOVETAIL_DATA_DIR, DOVETAIL_BLOB_DIR and DOVETAIL_REDIS_WAIT_S."""
        data = read.path("DOVETAIL_DATA_DIR", Path("dovetail-data"))
        return StoreSettings(
            redis_url=read.text("DOVETAIL_REDIS_URL", "redis://127.0.0.1:6379/0"),
            blob_dir=read.path("DOVETAIL_BLOB_DIR", data / "blobs"),
            redis_wait_s=read.number("DOVETAIL_REDIS_WAIT_S", 60.0, low=0.0, high=3600.0),
        )


def scratch_dir(read: SettingsReader) -> Path:
    """Read DOVETAIL_SCRATCH_DIR; unless set, a folder of ours in the system's temporary directory."""
    temporary = read.path("TMPDIR", Path(tempfile.gettempdir()))
    return read.path("DOVETAIL_SCRATCH_DIR", temporary / "dovetail")
