# SPDX-License-Identifier: Apache-2.0
"""Log lines: text for people, one JSON object a line for machines."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from grpc._cython import cygrpc

from dovetail.errors import InvalidInputError
from dovetail.log import configure


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_survive_quotes_and_newlines() -> None:
    stream = io.StringIO()
    configure("compiler", json=True, stream=stream)

    logging.getLogger("x").warning("model.refused name=%s why=%r", 'a"b', "line\nbreak")

    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    document = json.loads(lines[0])
    assert (document["event"], document["service"], document["level"]) == ("model.refused", "compiler", "warning")
    assert 'a"b' in document["message"]


def test_exception_goes_into_the_same_line() -> None:
    stream = io.StringIO()
    configure("compiler", json=True, stream=stream)

    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("x").exception("rpc.bug")

    assert "ValueError: inside" in json.loads(stream.getvalue())["exception"]


def test_text_is_one_readable_line_and_debug_is_left_out() -> None:
    stream = io.StringIO()
    configure("worker", json=False, level="info", stream=stream)

    logging.getLogger("x").debug("not.shown")
    logging.getLogger("x").info("worker.ready id=%s", "w1")

    assert stream.getvalue().endswith("INFO    worker: worker.ready id=w1\n")
    assert "not.shown" not in stream.getvalue()


def test_stream_that_is_no_terminal_gets_json() -> None:
    stream = io.StringIO()
    configure("worker", stream=stream)

    logging.getLogger("x").info("hello")

    assert json.loads(stream.getvalue())["event"] == "hello"


def test_unknown_level_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="log level 'loud' is not one of debug, info"):
        configure("worker", level="loud")


def test_a_caller_that_went_away_is_no_error_of_ours() -> None:
    stream = io.StringIO()
    configure("compiler", json=True, stream=stream)
    grpcs = logging.getLogger("grpc._cython.cygrpc")

    for error in (cygrpc.ExecuteBatchError("Failed"), ValueError("ours")):
        try:
            raise error
        except Exception as exc:
            grpcs.exception("%s raised in core by servicer method [/x/Y]", type(exc).__name__)

    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["ValueError"]
