# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's engine in depth: streams, closing, and the precision that is asked for or refused."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from dovetail.engines import SessionOptions, create_engine
from dovetail.engines.openvino_engine import import_openvino
from dovetail.errors import EngineError, UnsupportedError
from tests.fakes.onnx_models import conv_net, images


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    openvino = import_openvino()
    model = openvino.Core().read_model(conv_net(channels=32).SerializeToString())
    openvino.save_model(model, str(tmp_path / "m.xml"), compress_to_fp16=False)
    return {"model.xml": tmp_path / "m.xml", "model.bin": tmp_path / "m.bin"}


def load(files: dict[str, Path], **options: Any) -> Any:
    return create_engine("openvino").load(files, SessionOptions(threads=1, **options))


@pytest.mark.parametrize("callers", [2, 5])
def test_streams_answer_callers_at_once_each_with_its_own_result(files: dict[str, Path], callers: int) -> None:
    """More callers than streams wait for a request; none gets another's outputs."""
    single = load(files)
    feeds = [{"image": images(3, seed=seed)} for seed in range(callers)]
    expected = [single.run(feed)["logits"] for feed in feeds]
    session = load(files, streams=2)
    start = Barrier(callers)

    def call(index: int) -> bool:
        start.wait()
        return all(np.array_equal(session.run(feeds[index])["logits"], expected[index]) for _ in range(50))

    with ThreadPoolExecutor(callers) as pool:
        right = list(pool.map(call, range(callers)))

    assert all(right)
    assert session.concurrent
    assert not single.concurrent


def test_results_stay_while_other_requests_run(files: dict[str, Path]) -> None:
    session = load(files, streams=2)
    results = [session.run({"image": images(2, seed=seed)})["logits"] for seed in range(6)]
    kept = [result.copy() for result in results]

    for seed in range(6, 12):
        session.run({"image": images(2, seed=seed)})

    assert all(np.array_equal(a, b) for a, b in zip(results, kept, strict=True))


def test_a_failed_call_gives_its_request_back(files: dict[str, Path]) -> None:
    session = load(files, streams=2)

    for _ in range(4):
        with pytest.raises(EngineError):
            session.run({"image": images(1)[:, :, :5]})

    assert session.run({"image": images(1)})["logits"].shape == (1, 10)


@pytest.mark.parametrize("streams", [1, 2])
def test_a_closed_session_refuses_every_call(files: dict[str, Path], streams: int) -> None:
    session = load(files, streams=streams)
    session.run({"image": images(1)})

    session.close()
    session.close()

    for _ in range(3):
        with pytest.raises(EngineError, match="closed"):
            session.run({"image": images(1)})


def test_bf16_runs_where_the_cpu_has_it_and_is_refused_elsewhere(files: dict[str, Path]) -> None:
    native = "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    details = {"execution_precision": "bf16"}

    if native:
        exact = load(files).run({"image": images(4)})["logits"]
        assert not np.array_equal(load(files, details=details).run({"image": images(4)})["logits"], exact)
    else:
        with pytest.raises(UnsupportedError, match="computes in bf16; openvino would compute in f32"):
            load(files, details=details)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="ARM computes in f16")
def test_f16_on_x86_is_refused_instead_of_silently_computed_in_something_else(files: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedError, match=r"computes in f16; openvino would compute in (bf16|f32)"):
        load(files, details={"execution_precision": "f16"})


@pytest.mark.parametrize("details", [{}, {"execution_precision": ""}, {"execution_precision": "f32"}])
def test_what_is_not_pinned_is_computed_in_f32(files: dict[str, Path], details: dict[str, Any]) -> None:
    exact = load(files, details={"execution_precision": "f32"}).run({"image": images(4)})["logits"]

    assert np.array_equal(load(files, details=details).run({"image": images(4)})["logits"], exact)
