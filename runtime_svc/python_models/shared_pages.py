# SPDX-License-Identifier: Apache-2.0
"""Memory that a node shares with the process of a Python model, so that large tensors are copied once, not thrice.

The node makes it, and it can neither shrink nor grow afterwards: nothing that the other side does can take pages away
under a reader. Where the system has no such memory, tensors go through the socket like small ones.

Source: memfd_create(2); fcntl(2), file seals (Linux 3.17).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sys

import numpy as np

from dovetail.tensor import Array

LEAST_BYTES = 128 << 10
"""From here on shared memory is used: below, a copy through the socket costs less than looking after it."""

MOST_BYTES = 256 << 20
"""Bodies above go through the socket, so that a rare giant does not stay in memory for ever."""

AVAILABLE = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


class SharedPages:
    """A block of shared memory. The mapping lives as long as any array over it.

    Args:
        descriptor: Of the memory; owned from now on.
        size_bytes: Its size.

    Attributes:
        array: All of it, uint8.
    """

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor = descriptor
        self.array: Array = np.frombuffer(mmap.mmap(descriptor, size_bytes), dtype=np.uint8)

    @classmethod
    def create(cls, least_bytes: int) -> SharedPages:
        """New zeroed memory of at least that size, rounded up to a power of two.

        Raises:
            OSError: The system has none left.
        """
        size = 1 << max(least_bytes - 1, LEAST_BYTES - 1).bit_length()
        descriptor = os.memfd_create("dovetail-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            return cls(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def size_bytes(self) -> int:
        """How much it holds."""
        return self.array.nbytes

    @property
    def descriptor(self) -> int:
        """To be sent to the other side; -1 once it was."""
        return self._descriptor

    @property
    def references(self) -> int:
        """How many look at it: each array over it, and each view of one, holds the array at the bottom, or something
        that does. So if the number has grown, somebody has kept one.
        """
        return sys.getrefcount(self.array)

    def forget_descriptor(self) -> None:
        """Close the descriptor; the mapping stays."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1


def worth_sharing(size_bytes: int) -> bool:
    """True if a body of that size should go through shared memory."""
    return AVAILABLE and LEAST_BYTES <= size_bytes <= MOST_BYTES
