# SPDX-License-Identifier: Apache-2.0
"""Entry point of the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that the process's arguments name; ends the process.

    The command tree is imported here, so that a Ctrl-C that comes while Python still imports ends like a later one.
    """
    try:
        from dovetail.cli.app import make_app

        make_app()()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
