# SPDX-License-Identifier: Apache-2.0
"""The whole mesh by its command line, as a user has it: up, push, compile, infer, why, Ctrl-C, and up again."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.mesh_process import DIGITS, DOVETAIL, children_of, up

pytestmark = pytest.mark.timeout(300)


def test_the_mesh_serves_what_was_pushed_and_has_it_all_again_after_a_restart(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with np.load(DIGITS / "heldout.npz") as held_out:
        images, labels = held_out["image"][:8], held_out["label"][:8]
    np.save(tmp_path / "x.npy", images)

    with up(data) as mesh:
        children = children_of(mesh.process.pid)
        pushed = mesh.json(
            "push", "digits", str(DIGITS / "digits.onnx"), "--validation", str(DIGITS / "validation.npz")
        )
        again = mesh.json("push", "digits", str(DIGITS / "digits.onnx"), "--validation", str(DIGITS / "validation.npz"))
        builds = mesh.json("compile", "digits", "--recipe", "ort-fp32")
        served = mesh.served_by("runtime")
        mesh.run("infer", "digits", "--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npy"))
        by_agent = mesh.json(
            "infer", "digits", "--input", str(tmp_path / "x.npy"), "--server", mesh.served_by("edge")["address"]
        )
        why = mesh.json("why", "digits", "--node", "agent")
        artifacts = mesh.json("artifacts", "digits")
        mesh.run("infer", "digits", "--input", f"wrong={tmp_path / 'x.npy'}", code=1)
        mesh.run("why", "nothing", code=4)

    assert (pushed["created"], again["created"], again["model"]["version"]) == (True, False, 1)
    assert [(build["recipe"], build["phase"]) for build in builds] == [("ort-fp32", "ready")]
    assert served["recipe"] == "ort-fp32"
    logits = np.load(tmp_path / "y.npy")
    assert logits.shape == (8, 10)
    assert (logits.argmax(1) == labels).mean() >= 0.75
    np.testing.assert_allclose(by_agent["outputs"][0]["data"], logits.ravel(), rtol=1e-4, atol=1e-4)
    assert (why["offered"][0]["recipe"], why["offered"][0]["measured"]) == ("ort-fp32", True)
    assert [item["artifact_key"] for item in artifacts] == [served["artifact_key"]]
    assert len(children) == 5  # Redis, compiler, worker, runtime, agent
    private, (public,) = data / "keys" / "worker.pem", tuple((data / "keys" / "trusted").iterdir())
    assert private.stat().st_mode & 0o777 == 0o600
    for log in ("runtime", "agent"):  # one command, and everything is signed and checked
        assert f"signed_by={public.stem} ({public.stem[:16]})" in (data / "logs" / f"{log}.log").read_text()
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)

    with up(data) as mesh:
        assert [model["model_digest"] for model in mesh.json("models")] == [pushed["model"]["model_digest"]]
        assert mesh.json("artifacts", "digits") == artifacts
        (build,) = mesh.json("compile", "digits", "--recipe", "ort-fp32")
        assert (build["phase"], build["cached"]) == ("ready", True)
        assert mesh.served_by("edge")["artifact_key"] == served["artifact_key"]
        mesh.run("infer", "digits", "--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "z.npy"))
        np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), logits)

        second = subprocess.run(
            [*DOVETAIL, "up", "--port", "0", "--data-dir", str(data)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert second.returncode == 1
        assert f"in use by pid {mesh.process.pid}" in second.stderr


def test_ctrl_c_while_the_mesh_starts_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*DOVETAIL, "up", "--port", "0", "--data-dir", str(tmp_path / "data")], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "data" / "logs" / "compiler.log").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = children_of(process.pid)

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert (process.returncode, "Traceback" in err) == (0, False), err
    assert children
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_a_port_that_is_taken_ends_the_start_with_its_name(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*DOVETAIL, "up", "--port", str(port), "--data-dir", str(tmp_path / "data")],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert done.returncode == 1
    assert f"compiler: port {port} on 127.0.0.1 is already in use" in done.stderr
    assert "Traceback" not in done.stderr
