# SPDX-License-Identifier: Apache-2.0
"""Settings of a node, and what it says it serves and where."""

from pathlib import Path

import pytest

from dovetail.errors import InvalidInputError
from runtime_svc.acquire.roster import Wanted
from runtime_svc.node_report import address_towards
from runtime_svc.settings import NodeSettings, read_flags


def test_defaults_are_those_of_the_role() -> None:
    edge = NodeSettings.from_env({}, role="edge")
    runtime = NodeSettings.from_env({}, role="runtime", metrics="0.0.0.0:8002")

    assert (edge.metrics, runtime.metrics) == ("", "0.0.0.0:8002")
    assert edge.node.endswith("-edge")
    assert runtime.node.endswith("-runtime")
    assert edge.data_dir != runtime.data_dir
    assert edge.models == Wanted({}, everything=True)
    assert edge.address == "0.0.0.0:8001"
    assert edge.measure is True


def test_variables_are_read_and_flags_stand_for_them() -> None:
    flags = read_flags(["--data-dir", "there", "--threads", "3"], program="test", about="")
    assert flags == {"DOVETAIL_DATA_DIR": "there", "DOVETAIL_THREADS": "3"}

    settings = NodeSettings.from_env(
        {
            "DOVETAIL_DATA_DIR": "here",
            "DOVETAIL_METRICS": "off",
            "DOVETAIL_ORDER_BUILDS": "no",
            "DOVETAIL_MEASURE": "no",
            "DOVETAIL_NODE": "",
            **flags,
        },
        role="runtime",
        metrics="0.0.0.0:8002",
    )

    assert settings.data_dir == Path("there")
    assert settings.threads == 3
    assert settings.metrics == ""
    assert (settings.order_builds, settings.measure) == (False, False)
    assert settings.node.endswith("-runtime")


def test_all_bad_values_are_told_together() -> None:
    bad = {
        "DOVETAIL_COMPILER": "nowhere",
        "DOVETAIL_THREADS": "many",
        "DOVETAIL_CACHE_BYTES": "-5",
        "DOVETAIL_OBJECTIVE": "beauty",
        "DOVETAIL_ACCURACY_FLOOR": "nan",
        "DOVETAIL_MODELS": "digits@zero",
        "DOVETAIL_LOG_JSON": "perhaps",
        "DOVETAIL_NODE": "Not A Name",
        "DOVETAIL_METRICS": "here",
    }

    with pytest.raises(InvalidInputError) as caught:
        NodeSettings.from_env(bad, role="edge")

    assert all(name in str(caught.value) for name in bad)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("*", Wanted({}, True)),
        ("", Wanted({}, False)),
        ("digits", Wanted({"digits": 0})),
        (" digits , resnet50@3,", Wanted({"digits": 0, "resnet50": 3})),
        ("digits@2,*", Wanted({"digits": 2}, True)),
    ],
)
def test_wanted_models_are_parsed(text: str, wanted: Wanted) -> None:
    assert Wanted.parse(text) == wanted


@pytest.mark.parametrize("text", ["Digits", "digits@", "digits@-1", "digits@0", "a b", "../x", "@3"])
def test_unreadable_wishes_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError):
        Wanted.parse(text)


def test_the_address_towards_a_local_peer_is_local() -> None:
    assert address_towards("127.0.0.1:7001", 8001) == "127.0.0.1:8001"
    assert address_towards("localhost:7001", 8001) in ("127.0.0.1:8001", "[::1]:8001")


def test_an_address_that_cannot_be_told_falls_back_to_loopback() -> None:
    assert address_towards("unix:/nowhere", 8001) == "127.0.0.1:8001"


def test_local_models_and_the_response_cache_are_set() -> None:
    settings = NodeSettings.from_env(
        {
            "DOVETAIL_MODEL_REPOSITORY": "models",
            "DOVETAIL_RESPONSE_CACHE_BYTES": "0",
            "DOVETAIL_RESPONSE_CACHE_URL": "redis://user:secret@host:6379/1",
        },
        role="runtime",
    )
    plain = NodeSettings.from_env({}, role="edge")

    assert settings.model_repository == Path("models")
    assert (settings.response_cache_bytes, settings.response_cache_url) == (0, "redis://user:secret@host:6379/1")
    assert (plain.model_repository, plain.response_cache_bytes, plain.response_cache_url) == (None, 64 << 20, "")


def test_a_bad_address_of_a_cache_is_told_without_its_password() -> None:
    with pytest.raises(InvalidInputError, match="DOVETAIL_RESPONSE_CACHE_URL") as caught:
        NodeSettings.from_env({"DOVETAIL_RESPONSE_CACHE_URL": "http://user:secret@host"}, role="runtime")

    assert "secret" not in str(caught.value)
