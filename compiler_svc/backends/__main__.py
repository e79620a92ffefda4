# SPDX-License-Identifier: Apache-2.0
"""Prints what this machine can build, as JSON: engine -> {"toolchain": {tool: version}, "missing": text}.

`dovetail doctor` asks this way, because the command line does not import a service.
"""

from __future__ import annotations

import json
import sys

from compiler_svc.backends import all_backends


def main() -> None:
    """Print one JSON object to stdout."""
    document = {
        engine: {"toolchain": dict(backend.toolchain()), "missing": backend.missing()}
        for engine, backend in all_backends().items()
    }
    json.dump(document, sys.stdout)


if __name__ == "__main__":
    main()
