# SPDX-License-Identifier: Apache-2.0
"""The processes of Python models: how they begin, what they may take, what they print, and how they end."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dovetail.errors import BusyError, DovetailError, EngineError, InvalidInputError, NotFoundError, UnavailableError
from dovetail.tensor import TensorSpec
from runtime_svc.configuration.serving_config import ServingConfig
from runtime_svc.python_models.open_model import folder_digest, open_python_model
from runtime_svc.python_models.session import PythonSession
from tests.conformance.dialogue import same
from tests.fakes.process_state import alive
from tests.fixtures_python_models import MANY_THINGS, do, floats, opened, wait_for


@pytest.fixture
def own_session(tmp_path: Path) -> Iterator[PythonSession]:
    """A process that the test may kill."""
    (made,) = opened(tmp_path / "own", MANY_THINGS).sessions
    yield made
    made.close()


def test_what_it_prints_is_in_the_log_and_bounded(own_session: PythonSession, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    do(own_session, "talk", floats())
    with pytest.raises(EngineError):
        do(own_session, "fail", floats())
    own_session.close()
    wait_for(lambda: "python_model.output_dropped" in caplog.text)

    lines = [record.getMessage() for record in caplog.records if "python_model.output " in record.getMessage()]
    assert any("stream=stdout text='a line'" in line for line in lines)
    assert any("stream=stderr text='to stderr'" in line for line in lines)
    assert len(lines) <= 200
    assert max(len(line) for line in lines) < 2200


def test_a_traceback_is_in_the_log(own_session: PythonSession, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(EngineError):
        do(own_session, "fail", floats())

    wait_for(lambda: "ValueError: no row 7" in caplog.text)
    assert "in fail" in caplog.text


def test_a_process_that_dies_fails_its_request_and_is_started_again(
    own_session: PythonSession, caplog: pytest.LogCaptureFixture
) -> None:
    first, generation = own_session.pid, own_session.generation

    with pytest.raises(EngineError, match=r"the process of Python model 'm' ended with exit status 3 while it served"):
        do(own_session, "leave", floats())
    wait_for(lambda: own_session.ready and own_session.pid != first)

    assert same(do(own_session, "double", floats()), floats() * np.float32(2))
    assert own_session.generation > generation
    assert "python_model.died" in caplog.text


def test_a_process_that_is_killed_while_idle_is_started_again_and_readiness_tells(tmp_path: Path) -> None:
    changes: list[bool] = []
    (made,) = opened(tmp_path / "m", MANY_THINGS, on_change=lambda: changes.append(made.ready)).sessions
    first = made.pid
    assert first is not None

    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len(changes) == 2)

    assert changes == [False, True]
    assert made.pid != first
    assert do(made, "double", floats()).shape == (1, 4)
    made.close()


def test_a_process_that_dies_again_and_again_is_started_after_a_pause(tmp_path: Path) -> None:
    (made,) = opened(tmp_path / "m", MANY_THINGS).sessions
    errors: list[DovetailError] = []

    while not any(isinstance(error, BusyError) for error in errors):
        assert len(errors) < 50
        with pytest.raises(DovetailError) as caught:
            do(made, "leave")
        errors.append(caught.value)
    busy = errors[-1]

    assert isinstance(busy, BusyError)
    assert 0 < busy.retry_after_s <= 0.5
    assert "is started again in" in str(busy)
    assert not made.ready
    wait_for(lambda: made.ready)
    assert do(made, "double", floats()).shape == (1, 4)
    made.close()


def test_a_process_that_cannot_start_again_stays_unready_and_says_why(tmp_path: Path) -> None:
    (made,) = opened(tmp_path / "m", MANY_THINGS).sessions
    (tmp_path / "m/model.py").write_text("raise RuntimeError('the table is gone')")

    with pytest.raises(EngineError):
        do(made, "leave")
    texts: list[str] = []
    while not any("the table is gone" in text for text in texts):
        assert len(texts) < 10_000
        with pytest.raises(DovetailError) as caught:
            do(made, "double", floats())
        texts.append(str(caught.value))

    assert not made.ready
    made.close()


def test_a_reply_that_takes_too_long_ends_the_process(tmp_path: Path) -> None:
    (made,) = opened(tmp_path / "m", MANY_THINGS, parameters={"dovetail.python.infer_s": "1"}).sessions

    with pytest.raises(EngineError, match="gave no reply within 1 s, and its process was ended"):
        do(made, "busy")
    wait_for(lambda: made.ready)
    made.close()


def test_the_process_ends_with_the_node_also_while_it_computes(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MANY_THINGS)
    node = """
import sys, threading, numpy as np
from pathlib import Path
from dovetail.tensor import TensorSpec
from runtime_svc.python_models.open_model import open_python_model
from runtime_svc.configuration.serving_config import ServingConfig
made = []
def start():  # in a thread that ends, which must not matter
    made.extend(open_python_model(Path(sys.argv[1]), ServingConfig(), name="m", version=1,
        inputs=(TensorSpec("op", "BYTES", (-1, 1)),), outputs=(TensorSpec("y", "FP32", (-1, -1)),),
        max_batch_size=8).sessions)
thread = threading.Thread(target=start)
thread.start()
thread.join()
threading.Thread(target=made[0].run, args=({"op": np.full((1, 1), b"busy", dtype=object)},), daemon=True).start()
print(made[0].pid, flush=True)
threading.Event().wait()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", node, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert alive(child)

    process.kill()
    process.wait()
    process.stdout.close()

    wait_for(lambda: not alive(child))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("raise RuntimeError('no table')", "Python model 'm' failed: RuntimeError: no table"),
        ("x = (", "SyntaxError"),
        ("", "model.py has no class Model"),
        ("class Model: pass", "class Model of model.py has no method infer"),
        ("class Model:\n def infer(self, r): ...\n def load(self, c): raise KeyError('k')", "KeyError: 'k'"),
        ("import os; os._exit(9)", "ended with exit status 9 while it was loaded"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path, code: str, text: str) -> None:
    with pytest.raises(EngineError) as caught:
        opened(tmp_path / "m", code)

    assert text in str(caught.value)


def test_a_model_that_takes_too_long_to_load_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="was not loaded within 2 s"):
        opened(tmp_path / "m", "import time; time.sleep(600)", parameters={"dovetail.python.load_s": "2"})


def test_limits_are_limits(tmp_path: Path) -> None:
    code = """
import resource, numpy as np
class Model:
    def infer(self, request):
        kinds = (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)
        if request["op"].item() == b"take":
            np.ones(8 << 30, np.uint8)
        return {"y": np.array([[resource.getrlimit(kind)[0] for kind in kinds]], np.float32)}
"""
    parameters = {"dovetail.python.memory_mb": "4096", "dovetail.python.open_files": "77"}
    (made,) = opened(tmp_path / "m", code, parameters=parameters).sessions

    assert do(made, "tell").ravel().tolist() == [4 << 30, 77, 0]
    with pytest.raises(EngineError, match="MemoryError"):
        do(made, "take")
    made.close()


@pytest.mark.parametrize(("name", "value"), [("dovetail.python.memory_mb", "much"), ("dovetail.python.memory", "1")])
def test_a_wrong_parameter_is_refused(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(InvalidInputError, match=name):
        opened(tmp_path / "m", MANY_THINGS, parameters={name: value})


def test_a_folder_without_the_file_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"has no model\.py"):
        open_python_model(tmp_path, ServingConfig(), name="m", version=1, inputs=(), outputs=(), max_batch_size=0)


def test_it_is_told_where_it_is_and_unloaded_at_the_end(tmp_path: Path) -> None:
    code = """
import neighbour
class Model:
    def load(self, context):
        self.context = context
    def infer(self, request):
        c = self.context
        text = (f"{c.name} {c.version} {c.max_batch_size} {c.instance}/{c.instances} {c.parameters['greeting']}"
                f" {c.inputs[0].name} {c.outputs[0].datatype} {neighbour.NAME}")
        return {"y": [[text]]}
    def unload(self):
        (self.context.folder / f"unloaded-{self.context.instance}").touch()
"""
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "neighbour.py").write_text("NAME = 'beside'")
    model = opened(
        folder, code, outputs=(TensorSpec("y", "BYTES", (-1, 1)),), instances=2, parameters={"greeting": "hello"}
    )

    texts = [made.run({"op": np.full((1, 1), b"", dtype=object)})["y"].item().decode() for made in model.sessions]
    before = folder_digest(folder)
    for made in model.sessions:
        made.close()

    assert texts == [f"m 1 8 {number}/2 hello op BYTES beside" for number in (0, 1)]
    assert model.digest == before
    assert sorted(path.name for path in folder.iterdir()) == ["model.py", "neighbour.py", "unloaded-0", "unloaded-1"]
    with pytest.raises(UnavailableError, match="being unloaded"):
        model.sessions[0].run({"op": np.full((1, 1), b"", dtype=object)})


def test_an_unload_that_hangs_is_ended(tmp_path: Path) -> None:
    code = MANY_THINGS + "\n    def unload(self):\n        time.sleep(600)\n"
    (made,) = opened(tmp_path / "m", code, parameters={"dovetail.python.unload_s": "1"}).sessions
    pid = made.pid
    assert pid is not None

    made.close()

    assert not alive(pid)


def test_what_a_process_started_ends_with_it(tmp_path: Path) -> None:
    code = """
import os, subprocess
class Model:
    def load(self, context):
        self.started = subprocess.Popen(["sleep", "600"])
    def infer(self, request):
        if request["op"].item() == b"leave":
            os._exit(3)
        return {"y": [[float(self.started.pid)]]}
"""
    (made,) = opened(tmp_path / "m", code).sessions
    first = int(do(made, "tell").item())
    with pytest.raises(EngineError):
        do(made, "leave")
    wait_for(lambda: not alive(first))

    second = int(do(made, "tell").item())
    made.close()

    wait_for(lambda: not alive(second))
