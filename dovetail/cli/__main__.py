# SPDX-License-Identifier: Apache-2.0
"""Entry point of the command line."""

from __future__ import annotations

from dovetail.cli.app import make_app


def main() -> None:
    """Run the command that the process's arguments name; ends the process."""
    make_app()()


if __name__ == "__main__":
    main()
