# SPDX-License-Identifier: Apache-2.0
"""Versions of libraries as the rules compare them: leading numbers only, and never an exception.

Manifests and fingerprints come from other machines, so a version may be any text. What cannot be read is the empty
tuple, which every rule treats as "unknown", not as "fits".
"""

from __future__ import annotations

import re
from functools import lru_cache

from dovetail.fingerprint import Fingerprint

_NUMBERS = re.compile(r"\d{1,9}(?:\.\d{1,9}){0,7}")


@lru_cache(maxsize=1024)
def parse_version(text: str) -> tuple[int, ...]:
    """Leading numbers: "2026.4.1-19000-abc" is (2026, 4, 1), "2.13.0+cpu" is (2, 13, 0), "" and "abc" are ()."""
    match = _NUMBERS.match(str(text).strip())
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def installed_version(library: str, fingerprint: Fingerprint) -> tuple[int, ...]:
    """Version of a library on that machine; () if it is not installed or its version cannot be read."""
    found = fingerprint.runtime(library)
    return parse_version(found.version) if found else ()


def version_text(version: tuple[int, ...]) -> str:
    """A version for people: (2026, 4, 1) is "2026.4.1"."""
    return ".".join(str(part) for part in version) or "of unknown version"


def minor_of(text: str) -> str:
    """The release line: "1.31.1" is "1.31"; "" where there are not two numbers."""
    numbers = parse_version(text)
    return f"{numbers[0]}.{numbers[1]}" if len(numbers) >= 2 else ""


def build_tag(text: str) -> str:
    """What follows the plus sign: "2.13.0+cu128" is "cu128"; "" without one."""
    return text.partition("+")[2].strip()
