# SPDX-License-Identifier: Apache-2.0
"""Settings of collecting and verifying, which the compiler service does."""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.settings import SettingsReader


@dataclass(frozen=True, slots=True)
class CollectionSettings:
    """When and how fast.

    Attributes:
        grace_s: How long what nobody needs any more is kept: after it was stored or asked for, after its model was
            deleted, and again in the trash. At least twice as long as the longest upload or build takes to store.
        period_s: A collection begins so long after the last ended; 0: only on demand.
        verify_bytes_per_s: How fast content is read for verifying; 0: no limit. The default leaves most of one disk to
            the nodes.
    """

    grace_s: float = 86400.0
    period_s: float = 3600.0
    verify_bytes_per_s: float = 200e6

    @staticmethod
    def read(read: SettingsReader) -> CollectionSettings:
        """Read DOVETAIL_GC_GRACE_S, DOVETAIL_GC_PERIOD_S and DOVETAIL_VERIFY_BYTES_PER_S."""
        default = CollectionSettings()
        return CollectionSettings(
            grace_s=read.number("DOVETAIL_GC_GRACE_S", default.grace_s, low=0.1, high=366 * 86400.0),
            period_s=read.number("DOVETAIL_GC_PERIOD_S", default.period_s, low=0.0, high=366 * 86400.0),
            verify_bytes_per_s=read.number(
                "DOVETAIL_VERIFY_BYTES_PER_S", default.verify_bytes_per_s, low=0.0, high=1e15
            ),
        )
