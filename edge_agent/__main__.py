# SPDX-License-Identifier: Apache-2.0
"""`python -m edge_agent`: serve models on a device, online or not.

Exit codes: 0 stopped on purpose, 1 could not start or a bug, 2 bad settings.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from dovetail.errors import DovetailError, InvalidInputError
from dovetail.log import configure
from dovetail.rpc.lifecycle import stop_on_signals
from edge_agent.agent import run_agent
from runtime_svc.settings import NodeSettings, read_flags

_log = logging.getLogger(__name__)
ABOUT = "Serve models on a device: negotiate, pull, verify, serve; goes on offline with what it last verified."


async def _run(settings: NodeSettings) -> None:
    with stop_on_signals() as stop:
        await run_agent(settings, stop)


def main() -> int:
    """Run the agent until it is stopped."""
    flags = read_flags(sys.argv[1:], program="python -m edge_agent", about=ABOUT)
    try:
        settings = NodeSettings.from_env({**os.environ, **flags}, role="edge")
    except InvalidInputError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    configure("edge", json=settings.log_json, level=settings.log_level)
    try:
        asyncio.run(_run(settings))
    except DovetailError as exc:
        _log.error("agent.failed reason=%s", exc)
        return 1
    except Exception:
        _log.exception("agent.bug")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
