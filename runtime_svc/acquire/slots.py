# SPDX-License-Identifier: Apache-2.0
"""Which artifact of a model this machine serves, which one it falls back to, and which ones it gave up.

One small file for each model, two blocks in it, each a whole copy of the state with a sequence number and a checksum.
A write goes to the older block, so a torn write or a power cut can only spoil the copy that was about to be replaced:
the newest valid block wins. Loading an artifact is recorded before it begins. A process that dies in it (a native
library may) therefore finds its own trace at the next start, and after MAX_TRIES traces gives that artifact up.

What is on disk for an artifact is the local cache's business. Blocks: call it off the event loop.
"""

from __future__ import annotations

import json
import os
import struct
import threading
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dovetail.digest import DIGEST_PATTERN, NAME_PATTERN, canonical_json, check_name, sha256_hex
from dovetail.errors import OverLimitError
from dovetail.store.durable import PRIVATE_FOLDER_MODE, clear_place, disk_errors, make_folder, sync_folder

MAX_TRIES = 3
"""Starts of an artifact that may end in the death of the process before it is given up."""

MAX_BAD = 8
"""Artifacts remembered as bad, newest kept."""

MAX_REASON_CHARS = 160
"""Longest reason kept on disk, so that a state always fits its block."""

BLOCK_BYTES = 4096
"""One page: a torn sector write cannot reach into the other block."""

_HEADER = struct.Struct("<4sII")  # magic, length of the document, CRC-32 of the document
_MAGIC = b"DVS1"


@dataclass(frozen=True, slots=True)
class SlotState:
    """State of one model on this machine.

    Attributes:
        model: Its name.
        seq: Grows by one with every write.
        current: Manifest digest of the artifact that serves; "" if none ever did.
        previous: Manifest digest of the one before it, kept on disk for instant rollback; "" if none.
        starts: How often the current artifact was begun since it last became ready.
        candidate: Manifest digest of the artifact that is being tried to take its place; "" if none.
        tries: How often the candidate was begun.
        bad: Manifest digests that failed here, each with the reason, oldest first.
        offer: Digest of the ladder that those failures belong to: a new offer gives all another chance.
    """

    model: str
    seq: int = 0
    current: str = ""
    previous: str = ""
    starts: int = 0
    candidate: str = ""
    tries: int = 0
    bad: tuple[tuple[str, str], ...] = ()
    offer: str = ""

    def begun(self, digest: str) -> SlotState:
        """That artifact is about to be loaded."""
        if digest == self.current:
            return replace(self, starts=self.starts + 1)
        return replace(self, candidate=digest, tries=self.tries + 1 if self.candidate == digest else 1)

    def committed(self, digest: str) -> SlotState:
        """That artifact serves now; the one before it stays for rollback."""
        state = replace(self, starts=0, bad=self._bad_without(digest))
        if digest == self.current:
            return state
        return replace(state, current=digest, previous=self.current, candidate="", tries=0)

    def withdrawn(self, digest: str) -> SlotState:
        """That artifact was not loaded after all, and not by its own fault."""
        state = replace(self, starts=0) if digest == self.current else self
        return replace(state, candidate="", tries=0) if digest == self.candidate else state

    def failed(self, digest: str, reason: str) -> SlotState:
        """That artifact does not work here; if it was the current one, the previous one takes its place."""
        short = reason.encode("ascii", "replace").decode()[:MAX_REASON_CHARS]
        state = replace(self, bad=(*self._bad_without(digest), (digest, short))[-MAX_BAD:])
        if digest == self.candidate:
            state = replace(state, candidate="", tries=0)
        if digest == self.current:
            return replace(state, current=self.previous, previous="", starts=0)
        return replace(state, previous="") if digest == self.previous else state

    def given_up(self) -> SlotState:
        """The state at start: what killed the process MAX_TRIES times in a row is bad."""
        why = f"the process died {MAX_TRIES} times while it was loaded"
        state = self.failed(self.candidate, why) if self.candidate and self.tries >= MAX_TRIES else self
        return state.failed(state.current, why) if state.current and state.starts >= MAX_TRIES else state

    def offered(self, offer: str) -> SlotState:
        """A ladder was offered; another one than before forgets which artifacts were bad."""
        return self if offer == self.offer else replace(self, offer=offer, bad=(), tries=0)

    def why_bad(self, digest: str) -> str:
        """Why that artifact was given up here; "" if it was not."""
        return dict(self.bad).get(digest, "")

    def _bad_without(self, digest: str) -> tuple[tuple[str, str], ...]:
        return tuple(item for item in self.bad if item[0] != digest)

    def manifests(self) -> frozenset[str]:
        """Digests of the manifests whose files must stay on disk."""
        return frozenset(digest for digest in (self.current, self.previous, self.candidate) if digest)


class SlotJournal:
    """The state of one model, on disk.

    Args:
        path: The journal file; it is made when first written.
        model: Name of the model it is for.
    """

    def __init__(self, path: Path, model: str) -> None:
        self._path = path
        self._block = 0
        self._unwritten = False
        self.state = SlotState(model)
        for index, state in enumerate(read_blocks(path)):
            if state is not None and state.model == model and state.seq > self.state.seq:
                self.state, self._block = state, index

    def write(self, state: SlotState) -> SlotState:
        """Make the state durable; on disk when it returns. Writing what is already there costs nothing.

        If it fails, the state counts in this process all the same, and the next write tries again.

        Raises:
            OverLimitError: The disk is full.
            UnavailableError: The disk cannot be written.
        """
        if replace(state, seq=self.state.seq) == self.state and not self._unwritten:
            return self.state
        self.state, self._unwritten = replace(state, seq=self.state.seq + 1), True
        self._write_block(encode_block(self.state), 1 - self._block)
        self._block, self._unwritten = 1 - self._block, False
        return self.state

    def _write_block(self, data: bytes, block: int) -> None:
        if not self._path.is_file() or self._path.is_symlink():
            clear_place(self._path)
        fresh = not self._path.exists()
        make_folder(self._path.parent, mode=PRIVATE_FOLDER_MODE)
        with disk_errors("write a slot journal"):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                os.pwrite(descriptor, data, block * BLOCK_BYTES)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if fresh:
                sync_folder(self._path.parent)


class SlotStore:
    """The journals of all models of this machine; thread-safe.

    Args:
        root: Directory of the journals; file names are digests of model names.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._journals: dict[str, SlotJournal] = {}
        make_folder(root, mode=PRIVATE_FOLDER_MODE)
        for path in sorted(root.iterdir()):
            states = [state for state in read_blocks(path) if state is not None]
            if DIGEST_PATTERN.fullmatch(path.name) and states and sha256_hex(states[0].model.encode()) == path.name:
                self._journals[states[0].model] = SlotJournal(path, states[0].model)

    def models(self) -> tuple[str, ...]:
        """Models that have ever served here, sorted."""
        with self._lock:
            return tuple(sorted(name for name, journal in self._journals.items() if journal.state.current))

    def state(self, model: str) -> SlotState:
        """State of a model; an empty one if it never served here."""
        with self._lock:
            return self._journal(model).state

    def write(self, state: SlotState) -> SlotState:
        """Make the state of its model durable.

        Raises:
            OverLimitError: The disk is full.
            UnavailableError: The disk cannot be written.
        """
        with self._lock:
            return self._journal(state.model).write(state)

    def manifests(self) -> frozenset[str]:
        """Digests of all manifests whose files must stay on disk."""
        with self._lock:
            return frozenset(digest for journal in self._journals.values() for digest in journal.state.manifests())

    def _journal(self, model: str) -> SlotJournal:
        if model not in self._journals:
            name = sha256_hex(check_name(model, "model name").encode())
            self._journals[model] = SlotJournal(self._root / name, model)
        return self._journals[model]


def encode_block(state: SlotState) -> bytes:
    """One block; `decode_block(encode_block(s)) == s`.

    Raises:
        OverLimitError: It does not fit a block (names and lists are bounded, so this means a bug).
    """
    document = canonical_json(asdict(state))
    if _HEADER.size + len(document) > BLOCK_BYTES:
        raise OverLimitError(
            f"slot state of model {state.model} has {len(document)} bytes, a block holds {BLOCK_BYTES}"
        )
    return (_HEADER.pack(_MAGIC, len(document), zlib.crc32(document)) + document).ljust(BLOCK_BYTES, b"\0")


def decode_block(data: bytes) -> SlotState | None:
    """The state in a block, or None if the block is torn, empty or not one."""
    if len(data) < _HEADER.size:
        return None
    magic, length, checksum = _HEADER.unpack_from(data)
    document = data[_HEADER.size : _HEADER.size + length]
    if magic != _MAGIC or len(document) != length or zlib.crc32(document) != checksum:
        return None
    try:
        values = json.loads(document)
        state = SlotState(**{**values, "bad": tuple((str(digest), str(why)) for digest, why in values["bad"])})
        return state if _is_sound(state) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_sound(state: SlotState) -> bool:
    """False for a record that this version cannot have written, whatever its checksum says."""
    numbers = (state.seq, state.starts, state.tries)
    digests = (state.current, state.previous, state.candidate, state.offer)
    return (
        all(type(number) is int and number >= 0 for number in numbers)
        and NAME_PATTERN.fullmatch(state.model) is not None
        and all(digest == "" or DIGEST_PATTERN.fullmatch(digest) for digest in digests)
    )


def read_blocks(path: Path) -> tuple[SlotState | None, SlotState | None]:
    """Both blocks of a journal; None for each that is not valid."""
    try:
        with path.open("rb") as file:
            data = file.read(2 * BLOCK_BYTES)
    except OSError:  # not there, or nothing that can be read
        return None, None
    return decode_block(data[:BLOCK_BYTES]), decode_block(data[BLOCK_BYTES : 2 * BLOCK_BYTES])
