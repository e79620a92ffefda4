# SPDX-License-Identifier: Apache-2.0
"""Requests with any number of replies."""
