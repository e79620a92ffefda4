# SPDX-License-Identifier: Apache-2.0
"""The real engines: every datatype of the protocol in and out, threads, errors, and no usage reports."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from dovetail.engines import SessionOptions, create_engine, engine_names
from dovetail.engines.openvino_engine import import_openvino, without_source_positions
from dovetail.errors import EngineError, InvalidInputError, UnsupportedError
from dovetail.tensor import NUMPY_DTYPES, TensorSpec
from tests.fakes.onnx_models import conv_net, elementwise, images, model_of, save

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def values(datatype: str) -> Any:
    if datatype == "BYTES":
        return np.array([[b"a", "é".encode()], [b"", b"nul \0 inside"]], dtype=object)
    array = np.array([[0, 1], [2, 3]]).astype(NUMPY_DTYPES[datatype])
    array.flags.writeable = False
    return array


def ir_files(model: Any, directory: Path) -> dict[str, Path]:
    """The model as IR, under names on disk that are not what the manifest calls them."""
    openvino = import_openvino()
    openvino.save_model(
        openvino.Core().read_model(model.SerializeToString()), str(directory / "m.xml"), compress_to_fp16=False
    )
    return {
        "model.xml": (directory / "m.xml").rename(directory / ("a" * 64)),
        "model.bin": (directory / "m.bin").rename(directory / ("b" * 64)),
    }


def onnx_files(model: Any, directory: Path) -> dict[str, Path]:
    return {"model.onnx": save(model, directory / ("c" * 64))}


def test_all_protocol_types_are_tried() -> None:
    assert ONNX_TYPES.keys() == NUMPY_DTYPES.keys()
    assert {"onnxruntime", "openvino"} <= set(engine_names())


@pytest.mark.parametrize("datatype", ONNX_TYPES)
def test_onnxruntime_carries_every_type(tmp_path: Path, datatype: str) -> None:
    files = onnx_files(elementwise("Identity", datatype=ONNX_TYPES[datatype]), tmp_path)
    session = create_engine("onnxruntime").load(files, SessionOptions(threads=1))

    result = session.run({"x": values(datatype)})["y"]

    assert session.inputs == (TensorSpec("x", datatype, (-1, 2)),)
    assert result.dtype == NUMPY_DTYPES[datatype]
    assert np.array_equal(result, values(datatype))


@pytest.mark.parametrize("datatype", [name for name in ONNX_TYPES if name != "BYTES"])
def test_openvino_carries_every_type_but_texts(tmp_path: Path, datatype: str) -> None:
    files = ir_files(elementwise("Identity", datatype=ONNX_TYPES[datatype]), tmp_path)
    session = create_engine("openvino").load(files, SessionOptions(threads=1))

    result = session.run({"x": values(datatype)})["y"]

    assert session.outputs == (TensorSpec("y", datatype, (-1, 2)),)
    assert result.dtype == NUMPY_DTYPES[datatype]
    assert np.array_equal(result, values(datatype))


def test_openvino_refuses_texts_by_name(tmp_path: Path) -> None:
    files = ir_files(elementwise("Identity", datatype=TensorProto.STRING), tmp_path)

    with pytest.raises(UnsupportedError, match="'x' has element type string"):
        create_engine("openvino").load(files, SessionOptions(threads=1))


def test_bf16_and_text_outputs_of_one_model_are_both_read(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Identity", ["a"], ["b"]), helper.make_node("Cast", ["a"], ["t"], to=TensorProto.STRING)]
    nodes[1] = helper.make_node("Cast", ["a"], ["f"], to=TensorProto.FLOAT)
    model = model_of(
        nodes,
        [value("a", TensorProto.BFLOAT16, ["n"])],
        [value("b", TensorProto.BFLOAT16, ["n"]), value("f", TensorProto.FLOAT, ["n"])],
        opset=21,
        ir_version=10,
    )
    session = create_engine("onnxruntime").load(onnx_files(model, tmp_path), SessionOptions(threads=1))

    result = session.run({"a": np.array([0x3F80, 0x4000], np.uint16)})

    assert result["b"].tolist() == [0x3F80, 0x4000]
    assert result["f"].tolist() == [1.0, 2.0]


def test_text_that_is_not_utf8_is_an_input_error_with_its_position(tmp_path: Path) -> None:
    files = onnx_files(elementwise("Identity", datatype=TensorProto.STRING), tmp_path)
    session = create_engine("onnxruntime").load(files, SessionOptions(threads=1))

    with pytest.raises(InvalidInputError, match=r"element \[0, 1\] of input 'x' is not UTF-8"):
        session.run({"x": np.array([[b"ok", b"\xff"]], dtype=object)})


def test_both_engines_agree_and_unoptimised_onnxruntime_too(tmp_path: Path) -> None:
    feed = {"image": images(3)}
    onnx, ir = onnx_files(conv_net(), tmp_path), ir_files(conv_net(), tmp_path)
    reference = create_engine("onnxruntime").load(onnx, SessionOptions(threads=1, optimize=False)).run(feed)["logits"]

    optimised = create_engine("onnxruntime").load(onnx, SessionOptions(threads=2)).run(feed)["logits"]
    converted = create_engine("openvino").load(ir, SessionOptions(threads=2)).run(feed)["logits"]

    assert np.allclose(reference, optimised, atol=1e-5)
    assert np.allclose(reference, converted, atol=1e-5)


def test_onnxruntime_session_serves_several_threads_at_once(tmp_path: Path) -> None:
    session = create_engine("onnxruntime").load(onnx_files(conv_net(), tmp_path), SessionOptions(threads=1))
    feeds = [{"image": images(1, seed=seed)} for seed in range(16)]
    expected = [session.run(feed)["logits"] for feed in feeds]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(session.run, feeds * 4))

    assert session.concurrent
    assert all(np.array_equal(item["logits"], expected[index % 16]) for index, item in enumerate(results))


def test_results_of_openvino_are_not_overwritten_by_the_next_run(tmp_path: Path) -> None:
    session = create_engine("openvino").load(ir_files(conv_net(), tmp_path), SessionOptions(threads=1))

    first = session.run({"image": images(1, seed=1)})["logits"]
    kept = first.copy()
    session.run({"image": images(1, seed=2)})

    assert not session.concurrent
    assert np.array_equal(first, kept)


def test_openvino_takes_views_that_are_not_dense(tmp_path: Path) -> None:
    session = create_engine("openvino").load(ir_files(conv_net(), tmp_path), SessionOptions(threads=1))
    wide = np.repeat(images(2), 2, axis=3)

    strided = session.run({"image": wide[:, :, :, ::2]})["logits"]

    assert np.array_equal(strided, session.run({"image": images(2)})["logits"])


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_wrong_inputs_are_engine_errors(tmp_path: Path, engine: str) -> None:
    files = {**onnx_files(conv_net(), tmp_path), **ir_files(conv_net(), tmp_path)}
    session = create_engine(engine).load(files, SessionOptions(threads=1))

    for feeds in ({}, {"picture": images(1)}, {"image": images(1).astype(np.float64)}, {"image": images(1)[:, :, :5]}):
        with pytest.raises(EngineError, match=f"{engine}|input"):
            session.run(feeds)


@pytest.mark.parametrize(
    ("engine", "files", "text"),
    [
        ("onnxruntime", {}, r"needs exactly one \.onnx file, the artifact has none"),
        ("onnxruntime", {"model.onnx": b"garbage"}, "onnxruntime cannot load model.onnx"),
        ("openvino", {"model.xml": b"<net/>"}, r"needs exactly one \.bin file"),
        ("openvino", {"model.xml": b"garbage", "model.bin": b""}, "openvino cannot load the model"),
    ],
)
def test_files_that_do_not_load_are_engine_errors(
    tmp_path: Path, engine: str, files: dict[str, bytes], text: str
) -> None:
    paths = {}
    for name, data in files.items():
        paths[name] = tmp_path / name
        paths[name].write_bytes(data)

    with pytest.raises(EngineError, match=text):
        create_engine(engine).load(paths, SessionOptions(threads=1))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_device_that_is_not_there_is_unsupported(tmp_path: Path, engine: str) -> None:
    files = {**onnx_files(conv_net(), tmp_path), **ir_files(conv_net(), tmp_path)}

    with pytest.raises(UnsupportedError, match="(?i)npu"):
        create_engine(engine).load(files, SessionOptions(threads=1, device="npu"))


def test_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match="'toaster' is unknown.*onnxruntime"):
        create_engine("toaster")


@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
def test_missing_library_says_how_to_install_it(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)

    with pytest.raises(UnsupportedError, match=rf"pip install 'dovetail\[{library}\]'"):
        create_engine(library)


def test_openvino_is_loaded_without_its_usage_reporter() -> None:
    program = (
        "import sys; from dovetail.engines import create_engine; create_engine('openvino');"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry') and sys.modules[name]])"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_onnxruntime_engine_needs_no_build_library() -> None:
    program = (
        "import sys; from dovetail.engines import create_engine; create_engine('onnxruntime');"
        "print(sorted({'onnx', 'nncf', 'openvino', 'torch', 'redis', 'grpc', 'typer'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_scalars_stay_scalars(tmp_path: Path, engine: str) -> None:
    value = helper.make_tensor_value_info
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], [value("x", 1, [])], [value("y", 1, [])])
    files = {**onnx_files(model, tmp_path), **ir_files(model, tmp_path)}
    session = create_engine(engine).load(files, SessionOptions(threads=1))

    result = session.run({"x": np.asarray(np.float32(2.5))})["y"]

    assert (result.shape, float(result)) == ((), 2.5)


def test_errors_of_openvino_leave_out_where_its_own_source_failed() -> None:
    text = "Exception from src/core.cpp:84: Check 'false' failed at src/front/report.cpp:151: no rule for Foo"

    assert without_source_positions(text) == "Check 'false' failed: no rule for Foo"
