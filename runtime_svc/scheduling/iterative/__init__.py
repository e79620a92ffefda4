# SPDX-License-Identifier: Apache-2.0
"""Requests that run in turns, each in a batch with whoever is under way."""
