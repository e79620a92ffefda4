# SPDX-License-Identifier: Apache-2.0
"""The table between our errors and gRPC's status codes."""

from __future__ import annotations

from urllib.parse import quote

import grpc
import grpc.aio
import pytest

from dovetail import errors
from dovetail.errors import BusyError, DovetailError, ErrorCode
from dovetail.rpc.status import (
    MAX_RETRY_AFTER_S,
    MAX_TEXT_BYTES,
    RETRY_METADATA_KEY,
    STATUS_BY_CODE,
    error_from_rpc,
    public_text,
    status_of,
    trailers_of,
    translated_errors,
)


def all_error_classes() -> list[type[DovetailError]]:
    return [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, DovetailError)]


def rpc_error(status: grpc.StatusCode, text: str = "it broke", **metadata: str) -> grpc.aio.AioRpcError:
    pairs = [(key.replace("_", "-"), value) for key, value in metadata.items()]
    return grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(*pairs), text)


def test_every_code_has_a_status_and_none_means_ok() -> None:
    assert set(STATUS_BY_CODE) == set(ErrorCode)
    assert grpc.StatusCode.OK not in STATUS_BY_CODE.values()


@pytest.mark.parametrize(
    ("cls", "status"),
    [
        (errors.InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
        (errors.IncompatibleError, grpc.StatusCode.FAILED_PRECONDITION),
        (errors.OverLimitError, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (errors.EngineError, grpc.StatusCode.INTERNAL),
        (errors.UnsupportedError, grpc.StatusCode.UNIMPLEMENTED),
        (errors.IntegrityError, grpc.StatusCode.DATA_LOSS),
        (errors.UnavailableError, grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_status_says_what_a_caller_should_do(cls: type[DovetailError], status: grpc.StatusCode) -> None:
    assert status_of(cls("text")) is status


@pytest.mark.parametrize("cls", all_error_classes())
def test_each_error_class_survives_the_wire_with_its_text(cls: type[DovetailError]) -> None:
    received = error_from_rpc(rpc_error(status_of(cls("x")), "the text", **dict(trailers_of(cls("x"), "id"))))

    assert type(received) is cls
    assert str(received) == "the text"


def test_a_server_that_is_busy_says_when_to_come_back() -> None:
    trailers = dict(trailers_of(BusyError("full", retry_after_s=2.5), "id"))
    received = error_from_rpc(rpc_error(grpc.StatusCode.UNAVAILABLE, "full", **trailers))

    assert isinstance(received, BusyError)
    assert received.retry_after_s == 2.5


@pytest.mark.parametrize("word", ["", "-1", "soon", "\u0661"])
def test_a_pause_that_is_no_number_is_not_believed(word: str) -> None:
    received = error_from_rpc(rpc_error(grpc.StatusCode.UNAVAILABLE, "full", **{RETRY_METADATA_KEY: word}))

    assert type(received) is errors.UnavailableError


def test_a_pause_without_end_is_cut() -> None:
    received = error_from_rpc(rpc_error(grpc.StatusCode.UNAVAILABLE, "full", **{RETRY_METADATA_KEY: "9" * 40}))

    assert isinstance(received, BusyError)
    assert received.retry_after_s == MAX_RETRY_AFTER_S


def test_foreign_server_is_understood_by_status_alone() -> None:
    assert type(error_from_rpc(rpc_error(grpc.StatusCode.NOT_FOUND))) is errors.NotFoundError
    assert type(error_from_rpc(rpc_error(grpc.StatusCode.UNKNOWN))) is DovetailError


def test_no_answer_names_who_was_called() -> None:
    failed = rpc_error(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses")

    expected = pytest.raises(errors.UnavailableError, match=r"no answer from 10\.0\.0\.1:7001: failed to connect")
    with expected, translated_errors("10.0.0.1:7001"):
        raise failed


@pytest.mark.parametrize("text", ["a" * 50_000, "ü%\n" * 20_000, "\x00\x1b[31m" * 9_000])
def test_long_text_is_cut_to_fit_the_trailers(text: str) -> None:
    shown = public_text(text)

    assert shown.endswith(" [cut]")
    assert len(quote(shown, safe="".join(chr(c) for c in range(32, 127) if chr(c) != "%"))) <= MAX_TEXT_BYTES
    assert "\x1b" not in shown
