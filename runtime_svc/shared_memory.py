# SPDX-License-Identifier: Apache-2.0
"""Shared memory regions: which parts of which objects clients may name as the place of a tensor.

A region is registered under a name and then used by it. The network decides neither which object is opened (the
operator's prefix does) nor learns from an error whether an object exists. What reads and writes the bytes is
`shared_memory_object`; what the protocol's parameters look like is `protocol.region_parameters`.

Source: Triton Inference Server, system shared memory extension; texts of its shared memory manager.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from dovetail.errors import AlreadyExistsError, InvalidInputError, NotFoundError, OverLimitError, UnsupportedError
from runtime_svc.shared_memory_object import FOLDER, SharedMemoryObject, object_name, open_object

_log = logging.getLogger(__name__)

DEFAULT_PREFIX = "dovetail_"
"""What the objects of clients are called unless the operator says otherwise, so that no other process's are reached."""

ANY_PREFIX = "*"
MAX_NAME_CHARS = 256
MAX_REGIONS = 512  # each holds a file descriptor; half of the 1,024 that a process usually gets
MAX_REGISTERED_BYTES = 64 << 30  # of all regions; the memory is its clients', so this bounds only what they can claim


@dataclass(frozen=True, slots=True)
class Region:
    """A registered part of an object.

    Attributes:
        name: What clients call it.
        key: The object's key, as its client gave it.
        offset: Where it begins in the object, in bytes.
        byte_size: Its size.
        memory: The object.
    """

    name: str
    key: str
    offset: int
    byte_size: int
    memory: SharedMemoryObject


@dataclass(frozen=True, slots=True)
class RegionWindow:
    """Where a tensor lies in a region; keeps the object open, so a region may be unregistered while it is in use.

    Attributes:
        region: The region.
        offset: From the region's beginning, in bytes.
        byte_size: Bytes from there on.
    """

    region: Region
    offset: int
    byte_size: int

    def read(self) -> memoryview:
        """A copy of the bytes, read-only.

        Raises:
            InvalidInputError: The object has become smaller since it was registered.
        """
        try:
            data = self.region.memory.read(self.region.offset + self.offset, self.byte_size)
        except OSError as exc:
            raise InvalidInputError(f"shared memory region '{self.region.name}' cannot be read") from exc
        if data is None:
            raise InvalidInputError(_shrunk(self.region.name))
        return data

    def write(self, data: memoryview) -> None:
        """Copy the bytes to the beginning of the window.

        Raises:
            InvalidInputError: They do not fit, or the object has become smaller since it was registered.
        """
        if len(data) > self.byte_size:
            raise InvalidInputError(f"{len(data)} bytes do not fit the {self.byte_size} of '{self.region.name}'")
        try:
            written = self.region.memory.write(self.region.offset + self.offset, data)
        except OSError as exc:
            raise InvalidInputError(f"shared memory region '{self.region.name}' cannot be written") from exc
        if not written:
            raise InvalidInputError(_shrunk(self.region.name))


class SharedMemoryRegions:
    """All regions of a server. Belongs to its event loop; windows may be used from any thread.

    Attributes:
        changes: How often a region was registered or forgotten; while it stays the same, so do windows.

    Args:
        prefix: How the name of an object must begin, after its slash; "*" for any, "" for none at all.
        folder: Where the system keeps shared memory objects.
    """

    def __init__(self, prefix: str = DEFAULT_PREFIX, *, folder: Path = FOLDER) -> None:
        self._prefix = prefix
        self._folder = folder
        self._regions: dict[str, Region] = {}
        self.changes = 0

    @property
    def enabled(self) -> bool:
        """True if regions can be registered."""
        return bool(self._prefix)

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Let clients name that part of that object.

        Raises:
            AlreadyExistsError: The name is taken.
            InvalidInputError: There is no such object, it is too small, or the name or key is not allowed.
            OverLimitError: There are too many regions, or too many bytes in them.
            UnsupportedError: Shared memory is switched off, or this system has none.
        """
        if not self.enabled:
            raise UnsupportedError(
                "system shared memory is switched off on this server: its operator sets DOVETAIL_SHARED_MEMORY_PREFIX"
            )
        if not 0 < len(name) <= MAX_NAME_CHARS:
            raise InvalidInputError(f"a shared memory region needs a name of 1 to {MAX_NAME_CHARS} characters")
        if name in self._regions:
            raise AlreadyExistsError(f"shared memory region '{name}' already in manager")
        self._check_room(byte_size)
        memory = self._open(name, key)
        if memory is None or not byte_size or offset + byte_size > memory.size_bytes:
            raise InvalidInputError(f"failed to register shared memory region '{name}': invalid args")
        self._regions[name] = Region(name, key, offset, byte_size, memory)
        self.changes += 1
        _log.info("shared_memory.registered region=%r key=%r size_bytes=%d", name, key, byte_size)

    def unregister(self, name: str) -> None:
        """Forget the region; requests that already use it finish. Nothing happens if there is none, as in Triton."""
        self.changes += 1
        if self._regions.pop(name, None) is not None:
            _log.info("shared_memory.unregistered region=%r", name)

    def unregister_all(self) -> None:
        """Forget all regions."""
        for name in list(self._regions):
            self.unregister(name)

    def listed(self, name: str = "") -> list[Region]:
        """The region of that name, or all of them.

        Raises:
            NotFoundError: There is no such region.
        """
        if not name:
            return list(self._regions.values())
        if name not in self._regions:
            raise NotFoundError(f"Unable to find system shared memory region: '{name[:MAX_NAME_CHARS]}'")
        return [self._regions[name]]

    def window(self, name: str, offset: int, byte_size: int) -> RegionWindow:
        """Part of a region.

        Raises:
            NotFoundError: There is no such region.
            InvalidInputError: The part does not lie within the region.
        """
        region = self._regions.get(name)
        if region is None:
            raise NotFoundError(f"Unable to find shared memory region: '{name[:MAX_NAME_CHARS]}'")
        if not 0 <= offset < region.byte_size:
            raise InvalidInputError(f"Invalid offset for shared memory region: '{name}'")
        if not 0 <= byte_size <= region.byte_size - offset:
            raise InvalidInputError(f"Invalid offset + byte size for shared memory region: '{name}'")
        return RegionWindow(region, offset, byte_size)

    def _check_room(self, byte_size: int) -> None:
        if len(self._regions) >= MAX_REGIONS:
            raise OverLimitError(
                f"{MAX_REGIONS} shared memory regions are registered, which is the most; unregister some"
            )
        if sum(region.byte_size for region in self._regions.values()) + byte_size > MAX_REGISTERED_BYTES:
            raise OverLimitError(f"the shared memory regions would have more than {MAX_REGISTERED_BYTES} bytes in all")

    def _open(self, name: str, key: str) -> SharedMemoryObject | None:
        found = object_name(key)
        if found is None:
            return None
        if self._prefix != ANY_PREFIX and not found.startswith(self._prefix):
            raise InvalidInputError(
                f"failed to register shared memory region '{name}': its key does not begin as this server's operator"
                " demands (DOVETAIL_SHARED_MEMORY_PREFIX)"
            )
        return open_object(found, self._folder)


def _shrunk(name: str) -> str:
    return f"shared memory region '{name}' has become smaller than it was registered; register it again"
