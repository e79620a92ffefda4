# SPDX-License-Identifier: Apache-2.0
"""`python -m dovetail.probe`: print this machine's fingerprint as JSON; needs nothing but the base install."""

from __future__ import annotations

import json
import sys

from dovetail.probe.machine import measure_sync


def main() -> int:
    """Print the fingerprint; always exits 0, since measuring never fails as a whole."""
    json.dump(measure_sync().to_json(), sys.stdout, indent=2, sort_keys=True)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
