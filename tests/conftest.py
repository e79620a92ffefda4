# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests; each family lives in a module of its own beside this file."""

pytest_plugins = [
    "tests.fixtures_jobs",
    "tests.fixtures_logging",
    "tests.fixtures_node",
    "tests.fixtures_redis",
    "tests.fixtures_s3",
    "tests.fixtures_tensorrt",
]
