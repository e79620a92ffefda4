# SPDX-License-Identifier: Apache-2.0
"""Which server the suite asks: the one that `--target host:port` names, else our own, started for the session."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from dovetail.pb import oip
from tests.conformance.batching_models import BATCHING_NAMES
from tests.conformance.dialogue import STREAM_STATUS_HEADER, Asker, SentHeaders, Target
from tests.conformance.models import MODELS
from tests.conformance.pipeline_models import PIPELINE_NAMES
from tests.conformance.sequence_models import SEQUENCE_NAMES
from tests.conformance.turn_models import TURN_NAMES

HERE = Path(__file__).parent
NAMES = (*(model.name for model in MODELS), *PIPELINE_NAMES, *SEQUENCE_NAMES, *BATCHING_NAMES, *TURN_NAMES)
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--target", default=None, help="host:port of the Open Inference Protocol server to ask")
    parser.addoption("--front-ends", type=int, default=0, help="processes that speak gRPC for our own server")
    parser.addoption("--header", action="append", default=[], help="name=value that every call sends; may be repeated")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "ours(reason): another server cannot be asked this, or answers otherwise, and why"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One worker asks all questions: some change what the server has registered, loaded or counted."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("conformance"))
            item.add_marker(pytest.mark.timeout(120))


@pytest.fixture(scope="session")
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the server is."""
    given = request.config.getoption("--target", default=None)
    if given:
        yield given
        return
    folder = tmp_path_factory.mktemp("conformance")
    port_file, log = folder / "port", folder / "log"
    front_ends = str(request.config.getoption("--front-ends", default=0))
    argv = [sys.executable, "-m", "tests.conformance.own_server", str(folder / "models"), str(port_file), front_ends]
    with log.open("wb") as output:
        process = subprocess.Popen(argv, cwd=HERE.parents[1], stdout=output, stderr=output)
    try:
        yield f"127.0.0.1:{_port(process, port_file, log)}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def channel(address: str, request: pytest.FixtureRequest) -> Iterator[grpc.Channel]:
    """A connection to the server, whose calls carry the headers that were given."""
    given = request.config.getoption("--header", default=None) or []
    headers = [(name.lower(), value) for name, _, value in (header.partition("=") for header in given)]
    with grpc.insecure_channel(address, options=UNLIMITED) as opened:
        grpc.channel_ready_future(opened).result(timeout=60)
        yield grpc.intercept_channel(opened, SentHeaders(headers)) if headers else opened


@pytest.fixture(scope="session")
def stub(channel: grpc.Channel) -> oip.Stub:
    """A client of the server; its calls block."""
    return oip.Stub(channel)


@pytest.fixture(scope="session")
def target(address: str, stub: oip.Stub, request: pytest.FixtureRequest) -> Target:
    """What is known about the server."""
    return Target(
        address,
        own=request.config.getoption("--target", default=None) is None,
        models=frozenset(name for name in NAMES if stub.ModelReady(oip.ModelReadyRequest(name=name), timeout=10).ready),
        extensions=frozenset(stub.ServerMetadata(oip.ServerMetadataRequest(), timeout=10).extensions),
        stream_status=_ends_streams_with_a_status(stub),
    )


@pytest.fixture
def asker(stub: oip.Stub, target: Target) -> Asker:
    """Asks the server; a question that it cannot be asked skips the test."""
    return Asker(stub, target)


@pytest.fixture
def ours(target: Target) -> None:
    """The test is about something that the protocol leaves open."""
    if not target.own:
        pytest.skip("the protocol leaves this open, and the server is not ours")


@pytest.fixture(autouse=True)
def _ours_for_a_reason(request: pytest.FixtureRequest) -> None:
    marker = request.node.get_closest_marker("ours")
    if marker is not None and not request.getfixturevalue("target").own:
        pytest.skip(marker.args[0])


def _ends_streams_with_a_status(stub: oip.Stub) -> bool:
    """True if a stream that asks for it ends with its first error; Triton has that since late 2024."""
    try:
        list(stub.ModelStreamInfer(iter([oip.ModelInferRequest()]), timeout=10, metadata=STREAM_STATUS_HEADER))
    except grpc.RpcError:
        return True
    return False


def _port(process: subprocess.Popen[bytes], port_file: Path, log: Path) -> int:
    deadline = time.monotonic() + 90
    while not port_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"our server did not start:\n{log.read_text()}", pytrace=False)
        time.sleep(0.05)
    return int(port_file.read_text())
