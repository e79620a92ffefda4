# SPDX-License-Identifier: Apache-2.0
"""Where a file is cut into chunks: at fixed places, or at places that its content chooses.

With fixed places a byte that is inserted shifts everything after it, and all later chunks are new. Content-defined
places move with the content, so a new version of a file has new chunks only where it differs. A reader needs to know
nothing of this: a manifest names every chunk with its size. docs/performance.md has the measurements behind the
default.

Source: Xia et al., "FastCDC: a Fast and Efficient Content-Defined Chunking Approach for Data Deduplication", USENIX
ATC 2016; the library `fastcdc`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from dovetail.artifact import CHUNK_BYTES
from dovetail.errors import InvalidInputError, UnsupportedError

CONTENT_DEFINED_BYTES = 256 << 10
"""Average chunk of the content-defined cut; the smallest is a quarter of it, the largest CHUNK_BYTES."""

Cut = Callable[[memoryview], int]
"""Length of the first chunk of the bytes that come next: at least 1, at most all of them."""


@dataclass(frozen=True, slots=True)
class Chunker:
    """A way to cut; immutable, so safe to share.

    Attributes:
        name: As settings call it.
        largest_bytes: No chunk is larger; `cut` must see so many bytes unless the file ends before.
        cut: See `Cut`.
    """

    name: str
    largest_bytes: int
    cut: Cut

    def pieces(self, file: BinaryIO) -> Iterator[bytes]:
        """The chunks of a file from where it stands, in order; holds twice the largest chunk in memory."""
        waiting = bytearray()
        while True:
            while len(waiting) < self.largest_bytes and (data := file.read(self.largest_bytes)):
                waiting += data
            if not waiting:
                return
            with memoryview(waiting) as view, view[: self.largest_bytes] as window:
                piece = bytes(window[: self.cut(window)])
            del waiting[: len(piece)]
            yield piece


def fixed(size_bytes: int = CHUNK_BYTES) -> Chunker:
    """Chunks of one size, but for the last."""
    return Chunker("fixed", size_bytes, lambda window: min(len(window), size_bytes))


def content_defined(average_bytes: int = CONTENT_DEFINED_BYTES, *, largest_bytes: int = CHUNK_BYTES) -> Chunker:
    """Chunks that end where the content says so.

    Raises:
        UnsupportedError: The library is not installed.
    """
    try:
        from fastcdc import fastcdc
    except ImportError as exc:
        raise UnsupportedError("content-defined chunks need the library fastcdc: pip install 'dovetail[cdc]'") from exc

    def cut(window: memoryview) -> int:
        return int(next(iter(fastcdc(window, average_bytes // 4, average_bytes, largest_bytes))).length)

    return Chunker("fastcdc", largest_bytes, cut)


CHUNKERS: dict[str, Callable[[], Chunker]] = {"fixed": fixed, "fastcdc": content_defined}


def chunker_named(name: str) -> Chunker:
    """The chunker that a setting names.

    Raises:
        InvalidInputError: There is none of that name.
        UnsupportedError: Its library is not installed.
    """
    if name not in CHUNKERS:
        raise InvalidInputError(f"there is no chunker {name[:40]!r}; there are {', '.join(CHUNKERS)}")
    return CHUNKERS[name]()
