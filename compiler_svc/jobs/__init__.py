# SPDX-License-Identifier: Apache-2.0
"""Build jobs: single-flight by artifact key, leases with fences, events."""
