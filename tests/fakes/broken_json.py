# SPDX-License-Identifier: Apache-2.0
"""JSON documents that are wrong in one place each: what a parser meets when somebody sends it rubbish on purpose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

SIZES = (0, -1, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, (1 << 32) - 1, 1 << 32, (1 << 32) + 1, 1 << 63, 1 << 64, 10**400)
"""Around every width that some language or message gives an integer."""

WRONG = (
    *SIZES, None, True, False, 1.5, -0.0, 1e308, float("inf"), float("-inf"), float("nan"), "", "\ud800", "\0",
    "a" * 300, "../x", "..", "/", "0" * 64, "0" * 64 + "\n", "A" * 64, "\u0661" * 64, [], {}, [[]],
    [None], {"a": None}, [1, 2],
)  # fmt: skip
"""Values of every kind that JSON has, and some that only Python's reader knows."""

NOT_DOCUMENTS = (
    b"", b"null", b"0", b"[]", b"{}", b'""', b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe", b"9" * 9000, b"1e999",
    b"NaN", b'"\\ud800"', b"\0", b'{"schema":1}', b'{"schema":1,"schema":1}',
)  # fmt: skip
"""What is no document at all, or hardly one."""


def wrong_documents(document: Any) -> Iterator[bytes]:
    """Every value of the document replaced by every wrong one in turn; of a list, the first two values."""
    yield from (json.dumps(value).encode() for value in WRONG)
    for inside, key in _places(document):
        good = inside[key]
        for value in WRONG:
            inside[key] = value
            yield json.dumps(document).encode()
        inside[key] = good


def _places(document: Any) -> Iterator[tuple[Any, str | int]]:
    keys = list(document) if isinstance(document, dict) else range(min(2, len(document)))
    for key in keys:
        yield document, key
        if isinstance(document[key], dict | list):
            yield from _places(document[key])


def torn_documents(data: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with a piece cut out, doubled or overwritten somewhere."""

    def tear(start: int, length: int, piece: bytes, doubled: bool) -> bytes:
        middle = data[start : start + length] * 2 if doubled else piece
        return data[:start] + middle + data[start + length :]

    place = st.integers(0, len(data))
    return st.builds(tear, place, st.integers(0, 64), st.binary(max_size=16), st.booleans())
