# SPDX-License-Identifier: Apache-2.0
"""Measuring the fingerprint: the only part that reads /proc, /sys and vendor libraries.

Parsers are pure functions over text or over a `Sysroot`, so that a test can feed the files of a machine nobody here
has. Vendor libraries are never imported into this process: each is asked in a short-lived child (`*_child.py`), so
that a driver that crashes or hangs costs one capability and not the agent.
"""

from dovetail.probe.explanation import explain
from dovetail.probe.machine import measure, measure_sync

__all__ = ["explain", "measure", "measure_sync"]
