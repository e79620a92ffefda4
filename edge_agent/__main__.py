# SPDX-License-Identifier: Apache-2.0
"""`python -m edge_agent`: serve models on a device, online or not.

Exit codes: 0 stopped on purpose, 1 could not start or a bug, 2 bad settings.
"""

from __future__ import annotations

import os
import sys

from dovetail.errors import InvalidInputError
from dovetail.log import configure
from dovetail.rpc.lifecycle import run_until_stopped
from edge_agent.agent import run_agent
from runtime_svc.settings import NodeSettings, read_flags

ABOUT = "Serve models on a device: negotiate, pull, verify, serve; goes on offline with what it last verified."


def main() -> int:
    """Run the agent until it is stopped."""
    flags = read_flags(sys.argv[1:], program="python -m edge_agent", about=ABOUT)
    try:
        settings = NodeSettings.from_env({**os.environ, **flags}, role="edge")
    except InvalidInputError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    configure("edge", json=settings.log_json, level=settings.log_level)
    return run_until_stopped(lambda stop: run_agent(settings, stop))


if __name__ == "__main__":
    sys.exit(main())
