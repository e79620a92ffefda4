# SPDX-License-Identifier: Apache-2.0
"""A user who does everything wrong, and a machine that does: what is said, how commands end, and what is left.

docs/faults.md has the whole list; here are the faults that need a whole mesh and the real command line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.fakes.mesh_process import DIGITS, DOVETAIL, Up, children_of, up
from tests.fakes.onnx_models import conv_net, elementwise, model_of, nan_model, save

pytestmark = pytest.mark.timeout(300)

MODEL = str(DIGITS / "digits.onnx")
VALIDATION = str(DIGITS / "validation.npz")


def until(found: Callable[[], Any], *, timeout_s: float = 60) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (result := found()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)
    return result


def files_below(*folders: Path) -> list[Path]:
    return [file for folder in folders for file in folder.rglob("*") if file.is_file()]


def wrong_files(folder: Path) -> None:
    data = Path(MODEL).read_bytes()
    (folder / "empty.onnx").touch()
    (folder / "text.onnx").write_text("hello, I am no model\n")
    (folder / "half.onnx").write_bytes(data[: len(data) // 2])
    (folder / "net.pt").write_bytes(b"PK\x03\x04" + bytes(60))
    save(elementwise(opset=99), folder / "opset.onnx")
    save(elementwise("FlyToMoon"), folder / "operator.onnx")
    with np.load(VALIDATION) as stored:
        images, labels = stored["image"], stored["label"]
    np.savez(folder / "pickled.npz", image=np.array([{}], dtype=object))
    np.savez(folder / "dtype.npz", image=images.astype(np.float64))
    np.savez(folder / "labels.npz", image=images, label=labels + 100)
    np.save(folder / "x.npy", images[:2])
    np.save(folder / "int64.npy", images[:2].astype(np.int64))
    np.save(folder / "shape.npy", images[:2, :, :4])
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)


REFUSED_PUSHES = [
    (("m", "empty.onnx"), "'empty.onnx' is empty"),
    (("m", "text.onnx"), "not an ONNX file, or it is truncated: 21 bytes"),
    (("m", "half.onnx"), "not an ONNX file, or it is truncated"),
    (("m", "net.pt"), "begins as a zip archive, like PyTorch's files, and cannot be read"),
    (("m", "opset.onnx"), "opset 99; this service knows up to"),
    (("m", "operator.onnx"), "no operator FlyToMoon; no backend can build this model"),
    (("../m", MODEL), "use 1 to 128 of a-z 0-9 . _ -"),
    (("m", MODEL, "--validation", "pickled.npz"), "Python objects, which are never read"),
    (("m", MODEL, "--calibration", "dtype.npz"), "dtype float64; the input is FP32"),
    (("m", MODEL, "--validation", "labels.npz"), "256 of 256 labels of the validation file are no class of the model"),
    (("m", MODEL, "--validation", VALIDATION, "--calibration", VALIDATION), "are also validation samples"),
]


def test_what_is_wrong_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    wrong_files(tmp_path)
    monkeypatch.chdir(tmp_path)

    with up(data, DOVETAIL_CACHE_BYTES="1000000") as mesh:
        for words, text in REFUSED_PUSHES:
            assert text in mesh.error("push", *words, code=1)
        assert mesh.json("models") == []
        assert files_below(data / "compiler" / "scratch", data / "blobs" / "cas", data / "blobs" / "documents") == []

        mesh.run("push", "digits", MODEL, "--validation", VALIDATION)
        for words, code, text in [
            (("compile", "digits", "--recipe", "openvino-int8-ofix"), 1, "push it again with --calibration FILE.npz"),
            (("compile", "digits", "--version", "7"), 4, "model 'digits' has no version 7; versions: 1"),
            (("compile", "nothing"), 4, "there is no model 'nothing'; models: digits."),
            (("compile", "digits", "--recipe", "magic"), 4, "no recipe 'magic' for this machine"),
            (("compile", "digits", "--fingerprint", "x.npy"), 1, "x.npy: fingerprint document is not JSON"),
        ]:
            assert text in mesh.error(*words, code=code)
        check_full_cache(mesh)


def check_full_cache(mesh: Up) -> None:
    """Nodes whose cache is too small for the artifact tell so and go on; a smaller one still gets in."""
    mesh.run("compile", "digits", "--recipe", "ort-fp32")
    until(lambda: "bytes more in the local cache" in mesh.run("nodes", "--json"))
    assert "UNAVAILABLE (artifact" in mesh.error("infer", "digits", "--input", "x.npy", code=4)

    mesh.run("compile", "digits", "--recipe", "ort-int8-dynamic")
    node = mesh.served_by("edge")["address"]
    assert mesh.served_by("edge")["recipe"] == "ort-int8-dynamic"
    for words, code, text in [
        (("--input", "int64.npy"), 1, "array of int64 (INT64), the model takes FP32: save array.astype('float32')"),
        (("--input", "shape.npy"), 1, "Expected [-1,1,8,8], got [2,1,4,8]"),
        (("--input", "objects.npy"), 1, "objects.npy is not an array file (.npy or .npz without objects)"),
        (("--input", "picture=x.npy"), 1, "no input 'picture'; its inputs are image"),
        (("--input", "x.npy", "--version", "7"), 4, "version 7"),
        (("--input", "x.npy", "--output", "missing/y.npy"), 1, "missing/y.npy cannot be written"),
        (("--input", "x.npy"), 0, ""),
    ]:
        assert text in mesh.error("infer", "digits", *words, "--server", node, code=code)


def test_a_mesh_with_a_nan_model_damaged_files_and_a_killed_redis_comes_back(tmp_path: Path) -> None:
    data = tmp_path / "data"
    save(nan_model(), tmp_path / "nan.onnx")
    scalar = helper.make_tensor_value_info
    save(
        model_of([helper.make_node("Relu", ["x"], ["y"])], [scalar("x", 1, [])], [scalar("y", 1, [])]),
        tmp_path / "scalar.onnx",
    )
    np.save(tmp_path / "s.npy", np.float32(2.5))
    with up(data) as mesh:
        mesh.run("push", "nan", str(tmp_path / "nan.onnx"))
        assert "the model itself gives NaN" in mesh.run("compile", "nan", "--recipe", "ort-fp32", "--json", code=1)
        mesh.run("push", "scalar", str(tmp_path / "scalar.onnx"))
        recipes = [word for name in ("ort-fp32", "openvino-fp32") for word in ("--recipe", name)]
        assert [build["phase"] for build in mesh.json("compile", "scalar", *recipes)] == ["ready", "ready"]
        node = mesh.served_by("edge")["address"]
        (output,) = mesh.json("infer", "scalar", "--input", str(tmp_path / "s.npy"), "--server", node)["outputs"]
        assert (output["shape"], output["data"]) == ([], [2.5])
        before = mesh.json("artifacts", "scalar")
        (redis,) = [pid for pid in children_of(mesh.process.pid) if b"redis" in command_of(pid)]
        os.kill(redis, signal.SIGKILL)
        until(lambda: models_of(mesh) == {"nan", "scalar"})

    for file in files_below(data / "agent" / "cas"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.chmod(0o600)
        file.write_bytes(content)

    with up(data) as mesh:
        assert models_of(mesh) == {"nan", "scalar"}
        assert mesh.json("artifacts", "scalar") == before
        node = mesh.served_by("edge")["address"]
        (output,) = mesh.json("infer", "scalar", "--input", str(tmp_path / "s.npy"), "--server", node)["outputs"]
        assert output["data"] == [2.5]
    assert "changed on disk; it will be fetched again" in (data / "logs" / "agent.log").read_text(encoding="utf-8")


def command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def models_of(mesh: Up) -> set[str]:
    """Names of the models; empty while the service says that Redis does not answer."""
    listed = subprocess.run(
        [*DOVETAIL, "--server", mesh.addresses["compiler"], "models", "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if listed.returncode == 3:
        assert "Redis at unix:…/redis.sock" in listed.stderr
        return set()
    return {model["name"] for model in json.loads(listed.stdout)}


def test_ctrl_c_in_a_push_registers_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    data = tmp_path / "data"
    big = save(conv_net(channels=900), tmp_path / "big.onnx")  # 29 MB: a push that takes long enough to be seen
    with up(data) as mesh:
        command = [*DOVETAIL, "--server", mesh.addresses["compiler"], "push", "digits", str(big)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            until(lambda: files_below(data / "compiler" / "scratch"))  # it is being received or checked
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)

        assert (process.returncode, out, err) == (130, "", "stopped by Ctrl-C\n")
        until(lambda: not files_below(data / "compiler" / "scratch"))
        assert mesh.json("models") == []
        mesh.run("push", "digits", MODEL)


def test_ctrl_c_in_the_demo_stops_everything_it_started(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*DOVETAIL, "demo"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    until(lambda: list(tmp_path.glob("dovetail-demo-*/logs/worker-1.log")))
    children = children_of(process.pid)

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert (process.returncode, "Traceback" in err) == (130, False), err
    assert len(children) >= 3  # Redis, compiler, worker
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert list(tmp_path.iterdir()) == []
