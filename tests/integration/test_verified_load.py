# SPDX-License-Identifier: Apache-2.0
"""Engines load the bytes that were verified, whatever happens to the files' names between the check and the load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from dovetail.engines import SessionOptions, create_engine
from dovetail.engines.openvino_engine import import_openvino
from runtime_svc.acquire.local_cache import LocalCache
from tests.fakes.tiny_artifacts import manifest_of

SIZE = 64
INPUT = np.ones((1, SIZE), np.float32)
Files = dict[str, bytes]


def onnx_model(scale: float, *, external: bool) -> Files:
    """Multiplies by a matrix that is `scale` everywhere."""
    weight = numpy_helper.from_array(np.full((SIZE, SIZE), scale, np.float32), "w")
    raw = weight.raw_data
    if external:
        weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[SIZE, SIZE])
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "model.onnx.data"), ("offset", "0"), ("length", str(len(raw)))):
            weight.external_data.add(key=key, value=value)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [1, SIZE])],
        [value("y", TensorProto.FLOAT, [1, SIZE])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    files = {"model.onnx": model.SerializeToString()}
    return {**files, "model.onnx.data": raw} if external else files


def openvino_model(scale: float, folder: Path) -> Files:
    """The same as IR."""
    ov = import_openvino()
    (folder / "source.onnx").write_bytes(onnx_model(scale, external=False)["model.onnx"])
    ov.save_model(ov.convert_model(folder / "source.onnx"), folder / "model.xml", compress_to_fp16=False)
    return {name: (folder / name).read_bytes() for name in ("model.xml", "model.bin")}


MODELS: dict[str, Callable[[float, Path], Files]] = {
    "onnxruntime": lambda scale, folder: onnx_model(scale, external=False),
    "onnxruntime with weights beside it": lambda scale, folder: onnx_model(scale, external=True),
    "openvino": openvino_model,
}


def put(cache: LocalCache, name: str, digest: str, data: bytes) -> None:
    """Give bytes the name of a file, as who can write to the disk could."""
    path = cache.path(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"fresh-{name}")
    fresh.write_bytes(data)
    fresh.chmod(0o400)
    fresh.rename(path)


@pytest.mark.parametrize("kind", MODELS)
def test_a_session_is_of_the_bytes_that_were_verified(tmp_path: Path, kind: str) -> None:
    good, evil = (MODELS[kind](scale, tmp_path) for scale in (1.0, 2.0))
    cache, manifest = LocalCache(tmp_path / "node"), manifest_of(good)
    for entry in manifest.files:
        put(cache, entry.name, entry.digest, good[entry.name])

    with cache.verified(manifest) as files:
        for entry in manifest.files:
            put(cache, entry.name, entry.digest, evil[entry.name])
        session = create_engine(kind.split()[0]).load(files, SessionOptions(threads=1))

    (output,) = session.run({session.inputs[0].name: INPUT}).values()  # with every descriptor closed again
    assert np.array_equal(output, np.full((1, SIZE), SIZE, np.float32))
    session.close()
