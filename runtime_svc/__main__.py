# SPDX-License-Identifier: Apache-2.0
"""`python -m runtime_svc`: serve models on this machine, each as the artifact that fits it.

Exit codes: 0 stopped on purpose, 1 could not start or a bug, 2 bad settings.
"""

from __future__ import annotations

import os
import sys

from dovetail.errors import InvalidInputError
from dovetail.log import configure
from dovetail.rpc.lifecycle import run_until_stopped
from runtime_svc.node import run_node
from runtime_svc.settings import NodeSettings, read_flags

ABOUT = "Serve models over the Open Inference Protocol, each as the artifact that fits this machine."


def main() -> int:
    """Run the service until it is stopped."""
    flags = read_flags(sys.argv[1:], program="python -m runtime_svc", about=ABOUT)
    try:
        settings = NodeSettings.from_env({**os.environ, **flags}, role="runtime", metrics="0.0.0.0:8002")
    except InvalidInputError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    configure("runtime", json=settings.log_json, level=settings.log_level)
    return run_until_stopped(lambda stop: run_node(settings, stop))


if __name__ == "__main__":
    sys.exit(main())
