# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: `make bench`. Not tests: nothing here fails because a machine is slow."""
