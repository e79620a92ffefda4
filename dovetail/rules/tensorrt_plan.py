# SPDX-License-Identifier: Apache-2.0
"""The first bytes of a TensorRT plan, read without TensorRT.

TensorRT has no preflight call that says whether a plan fits (only TensorRT-RTX has), and deserialising a foreign plan
to find out is what we want to avoid. Its header tells the version that wrote it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dovetail.errors import InvalidInputError

HEADER_BYTES = 28
_MAGIC = 0x74727466
"""Little-endian "ftrt". """


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
