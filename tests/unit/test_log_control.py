# SPDX-License-Identifier: Apache-2.0
"""Changing what a process logs while it runs."""

from __future__ import annotations

import io
import logging
import re

import pytest

from dovetail.errors import InvalidInputError
from dovetail.log import _TextFormatter
from runtime_svc.log_control import LogControl

LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)


class Root:
    """A root logger of its own, and what it wrote."""

    def __init__(self, level: int = logging.INFO) -> None:
        self.logger = logging.Logger("root", level)  # noqa: LOG001 - one that no other test knows
        self.output = io.StringIO()
        handler = logging.StreamHandler(self.output)
        handler.setFormatter(_TextFormatter("test"))
        self.logger.addHandler(handler)
        self.control = LogControl(self.logger)

    def shown(self) -> list[str]:
        """Levels of which a line is written now."""
        self.output.truncate(self.output.seek(0))
        for level in LEVELS:
            self.logger.log(level, "event")
        return [line.split()[1] for line in self.output.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("level", "settings"),
    [
        (logging.DEBUG, (True, True, True, 1)),
        (logging.INFO, (True, True, True, 0)),
        (logging.WARNING, (False, True, True, 0)),
        (logging.ERROR, (False, False, True, 0)),
    ],
)
def test_what_is_told_is_what_the_process_was_started_with(level: int, settings: tuple[bool, bool, bool, int]) -> None:
    told = Root(level).control.settings()

    assert (told.info, told.warning, told.error, told.verbose_level) == settings


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, ["INFO", "WARNING", "ERROR", "CRITICAL"]),
        ({"info": False}, ["WARNING", "ERROR", "CRITICAL"]),
        ({"warning": False}, ["INFO", "ERROR", "CRITICAL"]),
        ({"error": False}, ["INFO", "WARNING"]),
        ({"verbose_level": 1}, ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]),
        ({"verbose_level": 1, "info": False}, ["DEBUG", "WARNING", "ERROR", "CRITICAL"]),
        ({"info": False, "warning": False, "error": False}, []),
    ],
)
def test_each_level_is_switched_for_itself(changes: dict[str, bool | int], shown: list[str]) -> None:
    root = Root()

    root.control.update(changes)

    assert root.shown() == shown


def test_what_was_switched_off_can_be_switched_on_again() -> None:
    root = Root()
    root.control.update({"info": False, "error": False})
    root.control.update({"verbose_level": 2})

    root.control.update({"info": True, "error": True, "verbose_level": 0})

    assert root.shown() == ["INFO", "WARNING", "ERROR", "CRITICAL"]
    assert len(root.logger.handlers[0].filters) == 1


def test_instants_get_their_date_and_lose_it_again() -> None:
    root = Root()

    root.control.update({"format": "ISO8601"})
    root.logger.info("event")
    root.control.update({"format": "default"})
    root.logger.info("event")

    dated, short = root.output.getvalue().splitlines()[-2:]
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} ", dated)
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} ", short)


def test_an_unknown_format_changes_nothing() -> None:
    root = Root()

    with pytest.raises(InvalidInputError, match="invalid argument for log_format, got: xml"):
        root.control.update({"info": False, "format": "xml"})

    assert root.shown()[0] == "INFO"


def test_a_change_is_logged_before_it_holds(caplog: pytest.LogCaptureFixture) -> None:
    Root().control.update({"warning": False})

    assert "log.settings_changed" in caplog.text
