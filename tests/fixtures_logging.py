# SPDX-License-Identifier: Apache-2.0
"""Logging as a process starts with it, before every test.

Libraries that some tests load in this process change levels and switch loggers off, and never back; whether a warning
of ours is seen must not depend on which tests ran before.
"""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def fresh_logging() -> None:
    """The root logger's level is WARNING, nothing is disabled, and our loggers have no level of their own."""
    logging.disable(logging.NOTSET)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in ("compiler_svc", "dovetail", "runtime_svc"):
            logger.disabled, logger.propagate, logger.level = False, True, logging.NOTSET
    logging.getLogger().setLevel(logging.WARNING)  # last: it also empties the loggers' caches
