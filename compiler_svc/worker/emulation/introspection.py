# SPDX-License-Identifier: Apache-2.0
"""Runs under the emulator: which features the CPU has that it finds itself on, and whether an engine loads there.

`python -m compiler_svc.worker.emulation.introspection ENGINE` prints one line of JSON. It needs Python and our own
source only. The engine's library is really imported, which is where one that does not run here fails; a crash ends this
process and nothing else.
"""

from __future__ import annotations

import json
import platform
import sys
from importlib import metadata

from dovetail.engines import create_engine
from dovetail.probe.cpuid import parse_leaves
from dovetail.probe.cpuid_child import read_leaves
from dovetail.probe.hwcap import hwcap_features, read_hwcaps
from dovetail.rules.machine import canonical_arch


def introspect(engine: str) -> dict[str, object]:
    """Architecture, CPU features in the kernel's spelling, and the version of the engine's library.

    Raises:
        UnsupportedError: The engine does not load here.
    """
    arch = canonical_arch(platform.machine().lower())
    create_engine(engine)
    return {"arch": arch, "features": sorted(_features(arch)), "version": metadata.version(engine)}


def _features(arch: str) -> frozenset[str]:
    if arch == "x86_64":
        found = parse_leaves(read_leaves())
        return found.features if found is not None else frozenset()
    return hwcap_features(arch, read_hwcaps() or (0, 0))


if __name__ == "__main__":
    print(json.dumps(introspect(sys.argv[1])), flush=True)
