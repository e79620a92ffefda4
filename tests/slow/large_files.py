# SPDX-License-Identifier: Apache-2.0
"""Files around 2^31 and 2^32 bytes, really: `python -m tests.slow.large_files [--folder DIRECTORY]`.

Each is allocated, filled in its last chunk only (the rest is zeros that the disk gives), finished, and verified through
its descriptor, and its digest is held against what another program says. Needs 4.1 GiB of disk and a minute.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from dovetail.artifact import CHUNK_BYTES, ChunkRef, FileEntry
from dovetail.digest import sha256_hex
from runtime_svc.acquire.local_cache import LocalCache
from tests.fakes.tiny_artifacts import manifest_of
from tests.unit.test_acquire_verified_files import ZEROS_SHA256


def zeros(size_bytes: int) -> FileEntry:
    """A file of zeros as a manifest names it."""
    whole, rest = divmod(size_bytes, CHUNK_BYTES)
    full = ChunkRef(sha256_hex(bytes(CHUNK_BYTES)), CHUNK_BYTES)
    last = (ChunkRef(sha256_hex(bytes(rest)), rest),) if rest else ()
    return FileEntry("zeros.bin", "model", size_bytes, ZEROS_SHA256[size_bytes], (full,) * whole + last)


def check(root: Path, size_bytes: int) -> str:
    """Fetch, finish and verify a file of that size; returns what it took."""
    started = time.monotonic()
    cache, entry = LocalCache(root), zeros(size_bytes)
    manifest = manifest_of({"model.onnx": b"x"})
    object.__setattr__(manifest, "files", (entry,))
    with cache.open_partial(entry) as partial:
        for index, chunk in enumerate(entry.chunks):
            partial.write(index, bytes(chunk.size_bytes))
        assert partial.present_bytes == size_bytes
        partial.finish(cache.path(entry.digest))
    fetched = time.monotonic()
    with cache.verified(manifest) as files:
        assert files["zeros.bin"].stat().st_size == size_bytes
        with files["zeros.bin"].open("rb") as file:
            file.seek(size_bytes - 1)
            assert file.read() == b"\0"
    verified = time.monotonic()
    cache.collect(keep=())
    assert not cache.has(entry)
    return (
        f"{size_bytes} bytes: written and finished in {fetched - started:.1f} s, verified in {verified - fetched:.1f} s"
    )


def main() -> int:
    """Check all sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None)
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        for size_bytes in sorted(ZEROS_SHA256):
            print(check(Path(folder), size_bytes), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
