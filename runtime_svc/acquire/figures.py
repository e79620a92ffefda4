# SPDX-License-Identifier: Apache-2.0
"""What this node measured, on disk, so that a restart does not measure again.

One small file for all artifacts, written anew with each record. A file that cannot be read counts as empty: the worst
that follows is one measurement more. Blocks: call it off the event loop.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from dovetail.benchmark import BenchmarkRecord
from dovetail.digest import canonical_json
from dovetail.errors import DovetailError
from dovetail.store.durable import write_durable
from dovetail.wire import benchmark_bytes, read_benchmark

_log = logging.getLogger(__name__)

SCHEMA = 1
MAX_RECORDS = 256
"""Records kept, newest last; each has some 400 bytes."""

MAX_FILE_BYTES = 1 << 20


class FiguresFile:
    """Records by manifest digest and hardware class; one user at a time.

    Args:
        path: The file; it is made when first written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[tuple[str, str], BenchmarkRecord] | None = None

    def find(self, manifest_digest: str, hardware_class: str) -> BenchmarkRecord | None:
        """What was measured of that artifact on that class, or None."""
        return self._known().get((manifest_digest, hardware_class))

    def keep(self, manifest_digest: str, record: BenchmarkRecord) -> None:
        """Remember a record; if the disk cannot be written, in this process at least."""
        known = self._known()
        known.pop((manifest_digest, record.hardware_class), None)
        known[manifest_digest, record.hardware_class] = record
        while len(known) > MAX_RECORDS:
            del known[next(iter(known))]
        entries = [{"manifest": digest, "record": record.to_json()} for (digest, _), record in known.items()]
        try:
            write_durable(
                self._path, canonical_json({"schema": SCHEMA, "records": entries}), what="this node's measurements"
            )
        except DovetailError as exc:
            _log.warning("figures.not_kept reason=%s", exc)

    def _known(self) -> dict[tuple[str, str], BenchmarkRecord]:
        if self._records is None:
            self._records = _read(self._path)
        return self._records


def _read(path: Path) -> dict[tuple[str, str], BenchmarkRecord]:
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(MAX_FILE_BYTES))
        if document["schema"] != SCHEMA:
            return {}
        records = [(str(entry["manifest"]), _record(entry["record"])) for entry in document["records"]]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, DovetailError) as exc:
        _log.warning("figures.unreadable reason=%s", type(exc).__name__)
        return {}
    return {(digest, record.hardware_class): record for digest, record in records}


def _record(document: Any) -> BenchmarkRecord:
    """A record with plausible figures, whoever wrote it."""
    return read_benchmark(benchmark_bytes(BenchmarkRecord.from_json(document)))
