# SPDX-License-Identifier: Apache-2.0
"""`python -m runtime_svc.front_ends`: a front end; started by the runtime service, see `--front-ends`.

Exit codes: 0 stopped by the main process, 1 the main process is gone or a bug, 2 started by somebody else.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from dovetail.errors import InvalidInputError
from dovetail.log import configure
from runtime_svc.front_ends.front_end import run_front_end
from runtime_svc.front_ends.settings import FrontEndSettings


def main() -> int:
    """Run a front end until it is stopped."""
    try:
        settings = FrontEndSettings.parse(sys.argv[1] if len(sys.argv) == 2 else "")
    except InvalidInputError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    configure("front-end", json=settings.log_json, level=settings.log_level)
    try:
        asyncio.run(run_front_end(settings))
    except Exception:
        logging.getLogger(__name__).exception("process.bug")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
