# SPDX-License-Identifier: Apache-2.0
"""Python models in real processes: what goes in and out, and what their code may do wrong."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dovetail.errors import EngineError, InvalidInputError
from dovetail.tensor import NUMPY_DTYPES, TensorSpec
from runtime_svc.python_models.session import PythonSession
from runtime_svc.python_models.shared_pages import LEAST_BYTES
from runtime_svc.scheduling.call_context import CallContext
from runtime_svc.scheduling.request import SequenceStep
from tests.conformance.dialogue import same, sample
from tests.fixtures_python_models import MANY_THINGS, do, floats, opened, wait_for

DECOUPLED = """
import numpy as np

class Model:
    def infer(self, request):
        count = int(request["n"].item())
        if count == 1000:
            return {"y": request["n"]}
        if count == 2000:
            return None
        return self.replies(count, request)

    def replies(self, count, request):
        try:
            for number in range(abs(count)):
                yield {"y": np.full((1, 50_000 if number == 1 else 1), number, np.int32)}
            if count < 0:
                raise RuntimeError("out of numbers")
        finally:
            print("ended", request.cancelled)
"""

LARGE = LEAST_BYTES // 4  # elements of FP32 that go through shared memory


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PythonSession]:
    """One process for all tests that leave it as it was."""
    model = opened(
        tmp_path_factory.mktemp("many"), MANY_THINGS, parameters={"dovetail.python.environment": "WANTED, OTHER"}
    )
    yield model.sessions[0]
    model.sessions[0].close()


@pytest.mark.parametrize("columns", [0, 1, 5, LARGE - 100, LARGE, LARGE + 1, 4 * LARGE, LARGE + 7, 2])
def test_arrays_of_any_size_go_in_and_out(session: PythonSession, columns: int) -> None:
    for rows in (1, 3):
        x = floats(rows, columns)
        for _ in range(3):
            assert same(do(session, "double", x), x * np.float32(2))
            assert same(do(session, "identity", x), x)


def test_every_datatype_goes_in_and_out_large_and_small(tmp_path: Path) -> None:
    code = "class Model:\n    def infer(self, request):\n        return dict(request)\n"
    specs = tuple(TensorSpec(name.lower(), name, (-1, -1)) for name in NUMPY_DTYPES)
    (made,) = opened(tmp_path / "echo", code, inputs=specs, outputs=specs, max_batch_size=0).sessions
    for columns in (0, 4, 3001, 30_001):
        feeds = {spec.name: sample(spec.datatype, 3, columns) for spec in specs}
        outputs = made.run(feeds)
        assert all(same(outputs[name], feeds[name]) for name in feeds)
    made.close()


def test_an_optional_input_may_be_left_out(session: PythonSession) -> None:
    assert do(session, "without").item() == 0
    assert do(session, "without", floats()).item() == 1


@pytest.mark.parametrize(
    ("op", "text"),
    [
        ("fail", "Python model 'm' failed: ValueError: no row 7 in the table"),
        (
            "wrong_dtype",
            "output 'y' has dtype float64, but the configuration says FP32: convert it to float32 in infer",
        ),
        ("wrong_shape", "output 'y' has shape [3], but the configuration says [-1, -1]"),
        ("wrong_rows", "output 'y' has 2 rows for 1 rows of input"),
        ("nothing", "infer gave a NoneType; expected a dict of outputs by name"),
        ("no_output", "infer gave no output 'y'"),
        ("other_output", "infer gave an output 'z', which the configuration does not have"),
        ("yielding", "infer yields replies, but the configuration does not say that the model is decoupled"),
        ("unknown", "AttributeError: 'Model' object has no attribute 'unknown'"),
    ],
)
def test_what_the_code_does_wrong_is_told_without_a_traceback(session: PythonSession, op: str, text: str) -> None:
    with pytest.raises(EngineError) as caught:
        do(session, op, floats())

    assert text in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert "/" not in str(caught.value)
    assert same(do(session, "double", floats()), floats() * np.float32(2))


def test_the_code_may_refuse_an_input(session: PythonSession) -> None:
    with pytest.raises(InvalidInputError, match="Python model 'm': too short"):
        do(session, "refuse")


@pytest.mark.parametrize("columns", [4, LARGE])
@pytest.mark.parametrize(
    ("keep", "show"),
    [
        ("keep", "kept_first"),
        ("keep_view", "kept_first"),
        ("keep_memory", "kept_first"),
        ("keep_and_fail", "kept_first"),
        ("keep_request", "request_first"),
    ],
)
def test_inputs_are_the_models_to_write_to_and_to_keep(
    session: PythonSession, columns: int, keep: str, show: str
) -> None:
    assert (do(session, "write", floats(1, columns)) == 5).all()
    for value in (1, 2, 3):
        with contextlib.suppress(EngineError):
            do(session, keep, np.full((1, columns), value, np.float32))
        do(session, "double", np.full((1, columns), 77, np.float32))
        do(session, "identity", np.full((1, columns), 78, np.float32))
        assert do(session, show).item() == value


def test_the_nodes_secrets_are_not_in_the_environment(session: PythonSession) -> None:
    assert session.run({"op": np.full((3, 1), b"environment", dtype=object)})["y"].ravel().tolist() == [1, 0, 1]


def test_the_time_that_is_left_is_told(session: PythonSession) -> None:
    assert do(session, "time_left").item() == -1
    session.expect([CallContext(deadline_s=time.monotonic() + 500), CallContext(deadline_s=time.monotonic() + 1000)])
    assert 900 < do(session, "time_left").item() <= 1000
    session.expect([CallContext(deadline_s=time.monotonic() + 500), CallContext()])
    assert do(session, "time_left").item() == -1


def test_sequences_are_told_row_by_row(session: PythonSession) -> None:
    session.expect([
        CallContext(sequence=SequenceStep(7, start=True, end=False)),
        CallContext(sequence=SequenceStep(8, start=False, end=True), ready=False),
    ])  # fmt: skip

    rows = session.run({"op": np.full((2, 1), b"sequences", dtype=object)})["y"]

    assert rows.tolist() == [[7, 1, 0, 1], [8, 0, 1, 0]]


def test_cancellation_and_deadline_are_seen_while_the_code_runs(session: PythonSession) -> None:
    runner = threading.Thread(target=do, args=(session, "until_cancelled"))
    runner.start()
    while runner.is_alive():  # it may not have begun yet when it is told first
        session.cancel()
        runner.join(0.01)

    session.expect([CallContext(deadline_s=time.monotonic() + 0.05)])
    do(session, "until_cancelled")


@pytest.fixture(scope="module")
def decoupled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PythonSession]:
    (made,) = opened(
        tmp_path_factory.mktemp("decoupled"), DECOUPLED, inputs=(TensorSpec("n", "INT32", (-1, 1)),),
        outputs=(TensorSpec("y", "INT32", (-1, -1)),), decoupled=True,
    ).sessions  # fmt: skip
    yield made
    made.close()


def collect(decoupled: PythonSession, count: int, most: int = 1 << 30) -> list[int]:
    got: list[int] = []

    def emit(reply) -> None:
        if len(got) == most:
            raise InterruptedError
        got.append(int(reply["y"].ravel()[0]))
        assert (reply["y"] == got[-1]).all()

    try:
        decoupled.run_decoupled({"n": np.full((1, 1), count, np.int32)}, emit)
    except InterruptedError:
        got.append(-1)
    return got


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_a_decoupled_model_yields_any_number(decoupled: PythonSession, count: int) -> None:
    assert collect(decoupled, count) == list(range(count))


def test_a_decoupled_model_may_return_one_or_none(decoupled: PythonSession) -> None:
    assert collect(decoupled, 1000) == [1000]
    assert collect(decoupled, 2000) == []


@pytest.mark.parametrize("count", [-1, -5])
def test_an_error_of_a_decoupled_model_comes_after_what_it_yielded(decoupled: PythonSession, count: int) -> None:
    got: list[int] = []

    with pytest.raises(EngineError, match="RuntimeError: out of numbers"):
        decoupled.run_decoupled(
            {"n": np.full((1, 1), count, np.int32)}, lambda reply: got.append(int(reply["y"].ravel()[0]))
        )

    assert got == list(range(-count))
    assert collect(decoupled, 2) == [0, 1]


@pytest.mark.parametrize("most", [0, 1, 3])
def test_a_decoupled_model_stops_when_the_caller_is_gone(
    decoupled: PythonSession, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    assert collect(decoupled, 100_000, most) == [*range(most), -1]
    assert collect(decoupled, 3) == [0, 1, 2]
    wait_for(lambda: "text='ended True'" in caplog.text)
