# SPDX-License-Identifier: Apache-2.0
"""Reading settings from a mapping of variables: defaults, bounds, and complaints told together."""

from pathlib import Path

import pytest

from dovetail.digest import check_name
from dovetail.errors import InvalidInputError
from dovetail.settings import SettingsReader, host_identifier


def test_an_empty_variable_counts_as_not_set() -> None:
    read = SettingsReader({"TEXT": "", "PATH": "", "FLAG": "", "NUMBER": ""})

    assert read.text("TEXT", "default") == "default"
    assert read.path("PATH", Path("there")) == Path("there")
    assert read.optional_path("PATH") is None
    assert read.optional_flag("FLAG") is None
    assert read.flag("FLAG", default=True) is True
    assert read.number("NUMBER", 2.5, low=0.0, high=3.0) == 2.5
    read.finish()


@pytest.mark.parametrize(("text", "value"), [("1", True), ("Yes", True), ("true", True), ("0", False), ("NO", False)])
def test_a_flag_is_read_in_any_case(text: str, value: bool) -> None:
    read = SettingsReader({"FLAG": text})

    assert read.flag("FLAG", default=not value) is value
    read.finish()


@pytest.mark.parametrize("text", ["nan", "-0.1", "3.5", "inf", "many"])
def test_a_number_out_of_bounds_is_a_complaint_and_reads_as_the_default(text: str) -> None:
    read = SettingsReader({"NUMBER": text})

    assert read.number("NUMBER", 1.0, low=0.0, high=3.0) == 1.0
    with pytest.raises(InvalidInputError, match=r"NUMBER='.*use a number from 0.0 to 3.0"):
        read.finish()


def test_all_complaints_are_told_together() -> None:
    read = SettingsReader({"COUNT": "1.5", "WORD": "green", "FLAG": "maybe", "NAME": "A b"})

    read.integer("COUNT", 1, low=0, high=9)
    read.choice("WORD", "red", ("red", "blue"))
    read.flag("FLAG", default=False)
    assert read.checked("NAME", "name", check_name) == "name"

    with pytest.raises(InvalidInputError) as caught:
        read.finish()
    assert all(name in str(caught.value) for name in ("COUNT", "WORD", "FLAG", "NAME"))


def test_the_hosts_name_fits_into_an_identifier() -> None:
    assert check_name(f"{host_identifier()}-runtime")
