# SPDX-License-Identifier: Apache-2.0
"""TraceSetting and LogSettings: asked, changed, cleared, refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

import grpc
import numpy as np
import pytest

from dovetail.pb import oip
from tests.conformance.dialogue import Asker, Target, identity_request

Code = grpc.StatusCode
MODEL = "identity_fp32"
TRACE_SETTINGS = {"trace_level", "trace_rate", "trace_count", "log_frequency"}


def trace(asker: Asker, settings: Mapping[str, Sequence[str]] | None = None, model: str = "") -> dict[str, list[str]]:
    """Change settings, if any are given, and return all."""
    request = oip.TraceSettingRequest(model_name=model)
    for name, values in (settings or {}).items():
        request.settings[name].value.extend(values)
    return {name: list(value.value) for name, value in asker.stub.TraceSetting(request).settings.items()}


def trace_refusal(asker: Asker, settings: Mapping[str, Sequence[str]], model: str = "") -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        trace(asker, settings, model)
    return caught.value


def log(asker: Asker, **settings: dict[str, object]) -> dict[str, object]:
    """Change settings, if any are given, and return all."""
    request = oip.LogSettingsRequest()
    for name, value in settings.items():
        request.settings[name].CopyFrom(oip.LogSettingsRequest.SettingValue(**value))
    reply = asker.stub.LogSettings(request)
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in reply.settings.items()}


@pytest.fixture
def traced(asker: Asker, target: Target) -> Iterator[Asker]:
    """The server with its settings as they were at its start, before and after."""
    if "trace" not in target.extensions:
        pytest.skip("the server does not report the extension 'trace'")
    asker.need(MODEL)
    cleared: dict[str, Sequence[str]] = dict.fromkeys(TRACE_SETTINGS, ())
    trace(asker, cleared, MODEL)
    trace(asker, cleared)
    yield asker
    trace(asker, cleared, MODEL)
    trace(asker, cleared)


@pytest.fixture
def logging_(asker: Asker, target: Target) -> Iterator[Asker]:
    """The server, whose log settings are put back afterwards."""
    if "logging" not in target.extensions:
        pytest.skip("the server does not report the extension 'logging'")
    before = log(asker)
    yield asker
    log(
        asker,
        **{name: {"bool_param": before[name]} for name in ("log_info", "log_warning", "log_error")},
        log_verbose_level={"uint32_param": before["log_verbose_level"]},
        log_format={"string_param": before["log_format"]},
    )


def test_trace_settings_are_told(traced: Asker) -> None:
    settings = trace(traced)

    assert settings.keys() >= TRACE_SETTINGS
    assert all(len(values) == 1 for values in settings.values())
    assert trace(traced, model=MODEL) == settings


@pytest.mark.parametrize("name", ["trace_rate", "trace_count", "log_frequency"])
def test_a_model_has_the_servers_settings_until_it_has_its_own(traced: Asker, name: str) -> None:
    trace(traced, {name: ["7"]})
    inherited = trace(traced, model=MODEL)[name]
    trace(traced, {name: ["9"]}, MODEL)
    trace(traced, {name: ["8"]})

    assert inherited == ["7"]
    assert trace(traced)[name] == ["8"]
    assert trace(traced, model=MODEL)[name] == ["9"]


@pytest.mark.parametrize("name", ["trace_rate", "trace_count", "log_frequency"])
def test_a_cleared_setting_is_what_it_falls_back_to(traced: Asker, name: str) -> None:
    default = trace(traced)[name]
    trace(traced, {name: ["7"]})
    trace(traced, {name: ["9"]}, MODEL)

    of_model = trace(traced, {name: []}, MODEL)[name]
    of_server = trace(traced, {name: []})[name]

    assert (of_model, of_server) == (["7"], default)


def test_what_a_request_does_not_name_stays(traced: Asker) -> None:
    trace(traced, {"trace_rate": ["7"]})

    assert trace(traced, {"trace_count": ["3"]})["trace_rate"] == ["7"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"trace_rate": ["many"]}, "Unable to parse 'trace_rate', got: many"),
        ({"trace_rate": ["99999999999999"]}, "Unable to parse 'trace_rate', value is out of range"),
        ({"trace_rate": ["1", "2"]}, "expect only 1 value for 'trace_rate'"),
        ({"trace_count": ["-2"]}, "Unable to parse 'trace_count'. Expecting value >= -1, got: -2"),
        ({"trace_count": ["x"]}, "Unable to parse 'trace_count', got: x"),
        ({"trace_count": ["1", "2"]}, "expect only 1 value for 'trace_count'"),
        ({"log_frequency": ["x"]}, "Unable to parse 'log_frequency', got: x"),
        ({"log_frequency": ["1", "2"]}, "expect only 1 value for 'log_frequency'"),
        ({"trace_level": ["OFF", "TIMESTAMPS"]}, "Expect only one trace level 'OFF' is specified"),
    ],
)
def test_a_value_that_a_trace_setting_cannot_have(traced: Asker, settings: dict[str, list[str]], text: str) -> None:
    before = trace(traced)

    refused = trace_refusal(traced, settings)

    assert refused.code() is Code.INVALID_ARGUMENT
    assert text in refused.details()
    assert trace(traced) == before


def test_the_file_of_traces_is_the_operators_choice(traced: Asker) -> None:
    refused = trace_refusal(traced, {"trace_file": ["elsewhere.json"]})

    assert refused.code() is Code.UNIMPLEMENTED
    assert "trace file location can not be updated through network protocol" in refused.details()


def test_an_unknown_model_has_no_trace_settings(traced: Asker) -> None:
    refused = trace_refusal(traced, {"trace_rate": ["1"]}, "nope")

    assert "nope" in refused.details()
    assert refused.code() in (Code.INVALID_ARGUMENT, Code.NOT_FOUND)


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(
    ("settings", "code", "text"),
    [
        ({"trace_colour": ["red"]}, Code.INVALID_ARGUMENT, "unrecognized trace setting 'trace_colour'"),
        ({"trace_level": ["EVERYTHING"]}, Code.INVALID_ARGUMENT, "unrecognized trace level 'EVERYTHING'"),
        ({"trace_level": ["TENSORS"]}, Code.UNIMPLEMENTED, "callers' data is never written to disk"),
        ({"trace_level": ["TIMESTAMPS"], "trace_rate": ["0"]}, Code.INVALID_ARGUMENT, "sample rate must be non-zero"),
    ],
)
def test_what_nobody_knows_or_should_do_is_refused(
    traced: Asker, settings: dict[str, list[str]], code: grpc.StatusCode, text: str
) -> None:
    refused = trace_refusal(traced, settings)

    assert refused.code() is code
    assert text in refused.details()


def test_as_many_requests_are_traced_as_were_asked_for(traced: Asker, address: str) -> None:
    trace(traced, {"trace_level": ["TIMESTAMPS"], "trace_rate": ["2"], "trace_count": ["3"]}, MODEL)

    left = []
    for number in range(8):
        traced.ask(identity_request("FP32", np.ones((1, 1), np.float32), request_id=str(number)))
        left.append(trace(traced, model=MODEL)["trace_count"][0])

    assert left == ["3", "2", "2", "1", "1", "0", "0", "0"]


def test_log_settings_are_told(logging_: Asker) -> None:
    settings = log(logging_)

    assert {"log_info", "log_warning", "log_error", "log_verbose_level", "log_format", "log_file"} <= settings.keys()
    assert isinstance(settings["log_info"], bool)
    assert json.dumps(settings["log_verbose_level"]).isdecimal()


@pytest.mark.parametrize("name", ["log_info", "log_warning", "log_error"])
@pytest.mark.parametrize("value", [True, False])
def test_each_level_is_switched_for_itself(logging_: Asker, name: str, value: bool) -> None:
    others = {key: shown for key, shown in log(logging_).items() if key != name}

    after = log(logging_, **{name: {"bool_param": value}})

    assert after == {**others, name: value}


@pytest.mark.parametrize("level", [0, 1])
def test_verbosity_is_a_number(logging_: Asker, level: int) -> None:
    assert log(logging_, log_verbose_level={"uint32_param": level})["log_verbose_level"] == level


@pytest.mark.parametrize("name", ["ISO8601", "default"])
def test_instants_are_written_in_either_form(logging_: Asker, name: str) -> None:
    assert log(logging_, log_format={"string_param": name})["log_format"] == name


@pytest.mark.parametrize(
    ("name", "value", "code", "text"),
    [
        ("log_info", {"string_param": "yes"}, Code.INVALID_ARGUMENT, "expect boolean for 'log_info'"),
        ("log_warning", {"uint32_param": 1}, Code.INVALID_ARGUMENT, "expect boolean for 'log_warning'"),
        ("log_error", {"string_param": "no"}, Code.INVALID_ARGUMENT, "expect boolean for 'log_error'"),
        ("log_verbose_level", {"bool_param": True}, Code.INVALID_ARGUMENT, "for 'log_verbose_level'"),
        ("log_format", {"bool_param": True}, Code.INVALID_ARGUMENT, "expect string for 'log_format'"),
        ("log_format", {"string_param": "xml"}, Code.INVALID_ARGUMENT, "invalid argument for log_format, got: xml"),
        ("log_file", {"string_param": "elsewhere.log"}, Code.UNIMPLEMENTED,
         "log file location can not be updated through network protocol"),
    ],
)  # fmt: skip
def test_a_value_that_a_log_setting_cannot_have(
    logging_: Asker, name: str, value: dict[str, object], code: grpc.StatusCode, text: str
) -> None:
    before = log(logging_)

    with pytest.raises(grpc.RpcError) as caught:
        log(logging_, **{name: value})

    assert caught.value.code() is code
    assert text in caught.value.details()
    assert log(logging_) == before


@pytest.mark.usefixtures("ours")
def test_a_log_setting_that_nobody_knows_is_refused(logging_: Asker) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        log(logging_, log_colour={"bool_param": True})

    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert "unrecognized log setting 'log_colour'" in caught.value.details()
