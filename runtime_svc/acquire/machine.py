# SPDX-License-Identifier: Apache-2.0
"""What machine this is, known fast at start and measured fully soon after.

Asking every inference library what it can do takes a second on a server and several on a small board, because each is
imported in a child. The answers only change when a library or the hardware does. So the last full measurement is kept
on disk, and at start it is believed if a quick look at the hardware and the installed versions agree with it. The
full measurement follows before anything is negotiated; the probes themselves are `dovetail.probe`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dovetail.digest import canonical_json, sha256_hex
from dovetail.errors import DovetailError
from dovetail.fingerprint import MAX_DOCUMENT_BYTES, ClassFacts, Fingerprint
from dovetail.probe import measure
from dovetail.probe.memory import read_address_space_limit, read_memory
from dovetail.probe.runtimes import OPERATOR_LEAVE
from dovetail.probe.sysroot import Notes, Sysroot
from dovetail.store.durable import write_durable
from runtime_svc.acquire.activate import Machine

_log = logging.getLogger(__name__)

SCHEMA = 1


class MachineFacts:
    """This machine. Belongs to the event loop; `fingerprint` may be read from any thread.

    Args:
        path: Where the last full measurement is kept.
        threads: Threads for one inference; 0: one for each usable core.

    Attributes:
        fingerprint: The newest knowledge; a machine that nothing is known about until `look` or `measure`.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        self._path = path
        self._threads = threads
        self.fingerprint = Fingerprint(ClassFacts(arch="unknown"))

    def current(self) -> Machine:
        """What activation needs to know, as known now."""
        cores = self.fingerprint.facts.usable_cores
        return Machine(self.fingerprint, self._threads or cores, available_memory_bytes)

    async def look(self) -> bool:
        """Know this machine quickly: measured hardware, and what the libraries said last time.

        Returns:
            False if nothing fitting is on disk; then only `measure` helps.
        """
        remembered = await asyncio.to_thread(self._read)
        if remembered is None:
            return False
        seen = await measure(runtimes=False)
        if _hardware(seen.facts) != _hardware(remembered.facts):
            _log.info("fingerprint.changed_since_last_start")
            return False
        facts = replace(seen.facts, runtimes=remembered.facts.runtimes, accelerators=remembered.facts.accelerators)
        self.fingerprint = replace(seen, facts=facts)
        return True

    async def measure(self) -> Fingerprint:
        """Measure everything and keep it for the next start."""
        self.fingerprint = await measure()
        document = {
            "schema": SCHEMA,
            "versions": await asyncio.to_thread(installed_versions),
            "fingerprint": self.fingerprint.to_json(),
        }
        try:
            await asyncio.to_thread(write_durable, self._path, canonical_json(document), what="the fingerprint")
        except DovetailError as exc:
            _log.warning("fingerprint.not_kept why=%r", str(exc))
        return self.fingerprint

    def _read(self) -> Fingerprint | None:
        try:
            with self._path.open("rb") as file:
                document = json.loads(file.read(2 * MAX_DOCUMENT_BYTES))
            if document["schema"] != SCHEMA or document["versions"] != installed_versions():
                return None
            return Fingerprint.from_json(document["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError, DovetailError):
            return None


def available_memory_bytes() -> int:
    """Memory that this process could get now, in bytes; 0 if that cannot be told."""
    return read_memory(Sysroot(), Notes(), address_space_limit=read_address_space_limit()).available_bytes


def installed_versions() -> str:
    """Changes whenever a Python distribution is installed, removed or upgraded, or the operator gives other leave.

    Leave that was taken back must not be believed from the last start: code in artifacts would run once more.

    Source: the core metadata specification's "Recording installed projects": a distribution's metadata folder is named
    <name>-<version>.dist-info, so names are enough and nothing needs to be opened.
    """
    names = {
        name
        for folder in sys.path
        for name in (os.listdir(folder) if os.path.isdir(folder) else ())
        if name.endswith((".dist-info", ".egg-info"))
    }
    leave = [f"{name}={os.environ.get(name, '')}" for name in OPERATOR_LEAVE]
    return sha256_hex("\n".join([sys.version, *leave, *sorted(names)]).encode())


def _hardware(facts: ClassFacts) -> Mapping[str, object]:
    """What a quick look must find unchanged for the libraries' last answers to hold."""
    return {
        "arch": facts.arch,
        "libc": facts.libc,
        "cpu": (facts.cpu_vendor, facts.cpu_parts, facts.cpu_features),
        "cores": facts.usable_cores,
        "l4t": facts.l4t,
        "devices": [(item.kind, item.compute_capability, item.mig_profile) for item in facts.accelerators],
    }
