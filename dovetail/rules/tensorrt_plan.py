# SPDX-License-Identifier: Apache-2.0
"""The first bytes of a TensorRT plan, read without TensorRT, and which TensorRT loads a plan.

TensorRT has no preflight call that says whether a plan fits (only TensorRT-RTX has), and deserialising a foreign plan
to find out is what we want to avoid. Its header tells the version that wrote it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from dovetail.contract import Detail
from dovetail.errors import InvalidInputError

HEADER_BYTES = 28
LEAVE = (
    "set DOVETAIL_TENSORRT_HOST_CODE=allow (plugins: DOVETAIL_TENSORRT_PLUGINS=<sha256>,…) on it if you trust whoever "
    "publishes artifacts, or build it without"
)
"""How an operator lets native code inside plans run; said by the rules and by the engine."""

_MAGIC = 0x74727466
"""Little-endian "ftrt". """

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlanHeader:
    """Version of the TensorRT that wrote a plan.

    Attributes:
        major: First number, and so on; a plan loads only if all four are equal, unless it is version compatible.
        minor: Second.
        patch: Third.
        build: Fourth; not part of the wheel's version.
    """

    major: int
    minor: int
    patch: int
    build: int

    @property
    def version(self) -> tuple[int, ...]:
        """All four numbers."""
        return (self.major, self.minor, self.patch, self.build)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}.{self.build}"


def parse_plan_header(head: bytes) -> PlanHeader:
    """T10: read a plan's version from its first 28 bytes (more may be given).

    Raises:
        InvalidInputError: Too short, or not a plan of this format; such a file is not handed to TensorRT.

    Source:
        NVIDIA/TensorRT repository, samples/common/sampleEngines.cpp, printPlanVersion (release 11.1): two little-endian
        words, 0x74727466 and 0; bytes 24 to 27 are major, minor, patch, build.
    """
    if len(head) < HEADER_BYTES:
        raise InvalidInputError(f"plan has {len(head)} bytes; its header alone has {HEADER_BYTES}: it is truncated")
    magic, zero = struct.unpack_from("<II", head)
    if magic != _MAGIC or zero != 0:
        raise InvalidInputError(
            f"not a TensorRT plan of a known format: starts with {head[:8].hex()}, expected 6674727400000000"
        )
    return PlanHeader(*head[24:28])


def plugins_of(details: Mapping[str, Detail]) -> tuple[str, ...]:
    """sha256 digests of the plugin libraries that are serialised into a plan."""
    named = details.get("plugins", ())
    found = named if isinstance(named, tuple) else str(named).split(",")
    return tuple(str(item) for item in found if item)


def parse_profile(text: str) -> tuple[str, tuple[Shape, Shape, Shape]]:
    """T13: one line of a contract's `profiles`: what it bounds, and its least, tuned-for and greatest shape.

    Two forms: "<number>:<input>:<min>:<opt>:<max>" with dimensions joined by "x", such as
    "0:image:1x3x224x224:8x3x224x224:32x3x224x224", as the build writes it; and "batch:<min>:<opt>:<max>", as planned
    before it. Input names may hold colons.

    Raises:
        InvalidInputError: It is neither, or the shapes are not in order.
    """
    name, *spans = text.rsplit(":", 3)
    try:
        low, best, high = (tuple(int(dim) for dim in span.split("x") if span) for span in spans)
    except ValueError:
        raise InvalidInputError(f"profile {text[:80]!r} is not readable") from None
    ordered = len(low) == len(best) == len(high) and all(
        0 <= a <= b <= c for a, b, c in zip(low, best, high, strict=True)
    )
    if not ordered:
        raise InvalidInputError(f"profile {text[:80]!r} has shapes that are not least, tuned for, greatest")
    number, colon, rest = name.partition(":")
    return (rest if colon and number.isdecimal() else name), (low, best, high)


def goes_forward(plan: tuple[int, ...], runtime: tuple[int, ...]) -> bool:
    """T2: a version compatible plan loads on the same or a newer runtime: same major, 8 on 10, 10 on 11; never back.

    Source: TensorRT documentation 11.1, "Engine compatibility"; 11.4.1 support matrix.
    """
    if not plan or not runtime:
        return False
    majors = (plan[0], runtime[0])
    return majors in ((8, 10), (10, 11)) or (majors[0] == majors[1] and runtime >= plan)
