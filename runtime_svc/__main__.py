# SPDX-License-Identifier: Apache-2.0
"""`python -m runtime_svc`: serve models on this machine, each as the artifact that fits it.

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
from runtime_svc.node import run_node
from runtime_svc.settings import NodeSettings, read_flags

_log = logging.getLogger(__name__)
ABOUT = "Serve models over the Open Inference Protocol, each as the artifact that fits this machine."


async def _run(settings: NodeSettings) -> None:
    with stop_on_signals() as stop:
        await run_node(settings, stop)


def main() -> int:
    """Run the service until it is stopped."""
    flags = read_flags(sys.argv[1:], program="python -m runtime_svc", about=ABOUT)
    try:
        settings = NodeSettings.from_env({**os.environ, **flags}, role="runtime", metrics="0.0.0.0:8002")
    except InvalidInputError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    configure("runtime", json=settings.log_json, level=settings.log_level)
    try:
        asyncio.run(_run(settings))
    except DovetailError as exc:
        _log.error("runtime.failed reason=%s", exc)
        return 1
    except Exception:
        _log.exception("runtime.bug")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
