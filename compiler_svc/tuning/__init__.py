# SPDX-License-Identifier: Apache-2.0
"""Choosing settings by measurement: the space, the search, and the fresh processes that measure."""
