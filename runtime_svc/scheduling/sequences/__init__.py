# SPDX-License-Identifier: Apache-2.0
"""Requests that belong together: sequences, their slots, states and order."""
