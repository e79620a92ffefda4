# SPDX-License-Identifier: Apache-2.0
"""Checks that need gigabytes and minutes; run by hand, never collected with the tests."""
