# SPDX-License-Identifier: Apache-2.0
"""The unmodified tritonclient against a real server with ONNX Runtime, and its descriptors against ours."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet
from onnx import TensorProto, helper

from dovetail.engines import SessionOptions, create_engine
from dovetail.pb import oip_pb2
from dovetail.tensor import NUMPY_DTYPES
from runtime_svc.log_control import LogControl
from runtime_svc.repository import Repository
from runtime_svc.served_model import ModelFacts, ServedModel
from tests.fixtures_inference import running_server, tritonclient_python

__all__ = ["tritonclient_python"]

HERE = Path(__file__).parent
DIGITS = HERE.parents[1] / "examples/digits"
KEY = "d" * 64
ONNX_TYPES = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16, "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8, "INT16": TensorProto.INT16, "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64, "FP16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16, "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE, "BYTES": TensorProto.STRING,
}  # fmt: skip


def identity_model(datatype: str, path: Path) -> Path:
    """An ONNX file that gives back what it gets, of shape (batch, anything)."""
    value_in, value_out = (helper.make_tensor_value_info(name, ONNX_TYPES[datatype], ["n", "k"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [value_in], [value_out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    onnx.save(model, path)
    return path


def serve_onnx(name: str, path: Path, max_batch_size: int) -> ServedModel:
    """A model served by the real ONNX Runtime engine."""
    session = create_engine("onnxruntime").load({"model.onnx": path}, SessionOptions(threads=1))
    facts = ModelFacts(name, 1, session.inputs, session.outputs, max_batch_size, KEY, "ort-fp32", "onnxruntime")
    return ServedModel.start(facts, [session])


async def run_client(python: Path, folder: Path) -> dict[str, Any]:
    """Serve digits and an identity of each datatype, and let the client's script work with them."""
    logs = LogControl(logging.Logger("root"))  # noqa: LOG001 - the client changes it; the tests' own stays as it is
    async with running_server(Repository(), logs=logs) as server:
        server.repository.install(serve_onnx("digits", DIGITS / "digits.onnx", 8))
        for datatype in NUMPY_DTYPES:
            path = identity_model(datatype, folder / f"{datatype}.onnx")
            server.repository.install(serve_onnx(f"identity-{datatype.lower()}", path, 4))
        process = await asyncio.create_subprocess_exec(
            str(python), str(HERE / "tritonclient_session.py"), server.address, str(folder),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment(),
        )  # fmt: skip
        try:
            output, errors = await asyncio.wait_for(process.communicate(), 120)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, errors.decode()
    return dict(json.loads(output))


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


@pytest.fixture(scope="module")
def heldout() -> Iterator[tuple[np.ndarray, list[int]]]:
    with np.load(DIGITS / "heldout.npz", allow_pickle=False) as data:
        yield data["image"][:64].astype(np.float32), data["label"][:64].tolist()


@pytest.fixture(scope="module")
def client(
    tritonclient_python: Path,
    tmp_path_factory: pytest.TempPathFactory,
    heldout: tuple[np.ndarray, list[int]],
) -> dict[str, Any]:
    """What the client's session got, step by step."""
    folder = tmp_path_factory.mktemp("tritonclient")
    np.save(folder / "images.npy", heldout[0])
    return asyncio.run(run_client(tritonclient_python, folder))


@pytest.fixture(scope="module")
def expected(heldout: tuple[np.ndarray, list[int]]) -> list[int]:
    """Digits that the model sees in the held-out images, computed in this process without a server."""
    session = create_engine("onnxruntime").load({"model.onnx": DIGITS / "digits.onnx"}, SessionOptions(threads=1))
    digits = session.run({"image": heldout[0]})["logits"].argmax(axis=1).tolist()
    session.close()
    return list(digits)


def test_the_client_finds_server_and_models_as_it_expects_them(client: dict[str, Any]) -> None:
    described = client["describe"]

    assert (described["live"], described["ready"], described["model_ready"], described["version_ready"]) == (True,) * 4
    assert described["unknown_ready"] is False
    assert described["server"]["name"] == "dovetail"
    assert {"model_repository", "statistics", "system_shared_memory"} <= set(described["server"]["extensions"])
    assert described["metadata"]["platform"] == "onnxruntime"
    assert described["metadata"]["versions"] == ["1"]
    assert described["metadata"]["inputs"] == [{"name": "image", "datatype": "FP32", "shape": ["-1", "1", "8", "8"]}]
    assert described["metadata"]["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": ["-1", "10"]}]


def test_the_model_config_has_shapes_without_the_batch_axis(client: dict[str, Any]) -> None:
    config = client["describe"]["config"]["config"]

    assert config["max_batch_size"] == 8
    assert config["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": ["1", "8", "8"]}]
    assert config["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": ["10"]}]
    assert config["instance_group"][0]["kind"] == "KIND_CPU"
    assert "dynamic_batching" in config
    assert config["parameters"]["dovetail_recipe"]["string_value"] == "ort-fp32"


def test_the_index_lists_every_model_as_ready(client: dict[str, Any]) -> None:
    models = client["describe"]["index"]["models"]

    assert {"name": "digits", "version": "1", "state": "READY"} in models
    assert len(models) == 1 + len(NUMPY_DTYPES)


def test_infer_and_async_infer_give_the_models_own_answers(client: dict[str, Any], expected: list[int]) -> None:
    inferred = client["infer"]

    assert inferred["digits"] == expected[:8]
    assert (inferred["id"], inferred["version"], inferred["artifact"]) == ("one", "1", KEY)
    assert inferred["async_errors"] == []
    assert inferred["async_digits"] == expected[:40]


def test_streamed_answers_come_in_order_and_an_error_does_not_end_the_stream(
    client: dict[str, Any], expected: list[int]
) -> None:
    streamed = client["stream"]

    assert streamed["order"] == [str(number) for number in range(20)]
    assert streamed["digits"] == expected[:20]
    assert streamed["final"] == [True] * 20
    assert streamed["error_position"] == 5
    (error,) = streamed["errors"]
    assert "unexpected shape for input 'image' for model 'digits'. Expected [-1,1,8,8], got [1,1,4,8]" in error
    assert streamed["nothing_else"]


def test_every_datatype_of_the_protocol_survives_the_way_through_client_server_and_engine(
    client: dict[str, Any],
) -> None:
    assert client["datatypes"] == dict.fromkeys(NUMPY_DTYPES, "same")


@pytest.mark.parametrize(
    ("call", "status", "text"),
    [
        ("unknown_model", "NOT_FOUND", "Request for unknown model: 'nope' is not found"),
        ("unknown_version", "NOT_FOUND", "Request for unknown model: 'digits' version 7 is not found"),
        ("version_text", "INVALID_ARGUMENT", "failed to get model version from specified version string 'one'"),
        ("no_inputs", "INVALID_ARGUMENT", "expected 1 inputs but got 0 inputs for model 'digits'. Got input(s) [],"),
        ("datatype", "INVALID_ARGUMENT", "input 'image' data-type is 'FP64', but model 'digits' expects 'FP32'"),
        ("shape", "INVALID_ARGUMENT", "unexpected shape for input 'image' for model 'digits'."),
        ("rows", "INVALID_ARGUMENT", "inference request batch-size must be <= 8 for 'digits'"),
        ("output", "INVALID_ARGUMENT", "unexpected inference output 'nope' for model 'digits'"),
        ("metadata", "NOT_FOUND", "Request for unknown model: 'nope' is not found"),
        ("load", "UNAVAILABLE", "explicit model load / unload is not allowed"),
        ("shared_memory", "NOT_FOUND", "Unable to find system shared memory region: 'nope'"),
        ("cuda", "INVALID_ARGUMENT", "failed to register CUDA shared memory region: 'gpu', GPUs not supported"),
    ],
)
def test_mistakes_get_the_status_and_the_text_that_clients_know(
    client: dict[str, Any], call: str, status: str, text: str
) -> None:
    got_status, got_text = client["failures"][call]

    assert got_status == f"StatusCode.{status}"
    assert text in got_text


def test_the_clients_shared_memory_utilities_carry_tensors_both_ways(
    client: dict[str, Any], expected: list[int]
) -> None:
    shared = client["shared_memory"]

    assert shared["digits"] == expected[:4]
    assert {name: region["byte_size"] for name, region in shared["listed"].items()} == {
        "images": str(4 * 64 * 4), "logits": str(4 * 10 * 4),
    }  # fmt: skip
    assert shared["again"][0] == "StatusCode.ALREADY_EXISTS"
    assert shared["gone"] == ["StatusCode.NOT_FOUND", "Unable to find shared memory region: 'images'"]
    assert shared["left"] == {}
    assert client["shared_texts"] == ["", "ä€", "x" * 1000]


def test_trace_and_log_settings_are_changed_through_the_client(client: dict[str, Any]) -> None:
    settings = client["settings"]

    assert {"log_info", "log_verbose_level", "log_format"} <= set(settings["log"])
    assert settings["trace"]["trace_rate"]["value"] == ["7"]
    assert settings["cleared"]["trace_rate"]["value"] == ["1000"]


def test_classes_are_what_argmax_finds(client: dict[str, Any], expected: list[int]) -> None:
    assert client["classes"] == expected[:8]


def test_statistics_count_rows_runs_and_requests(client: dict[str, Any]) -> None:
    (figures,) = client["statistics"]["model_stats"]

    assert figures["version"] == "1"
    assert int(figures["inference_count"]) == 8 + 40 + 20
    assert 3 <= int(figures["execution_count"]) <= 31
    assert int(figures["inference_stats"]["success"]["count"]) == 1 + 10 + 20
    assert int(figures["inference_stats"]["compute_infer"]["ns"]) > 0


def test_our_protocol_is_theirs_field_by_field(tritonclient_python: Path) -> None:
    theirs = _descriptors(tritonclient_python)
    their_messages, our_messages = _messages(theirs), _messages(oip_pb2.FILES)

    differences = [
        problem
        for name, message in our_messages.items()
        for problem in _message_differences(name, message, their_messages.get(name))
    ]

    assert differences == []
    assert set(_messages_of_service(theirs)) <= our_messages.keys()


def test_our_service_is_theirs_method_by_method(tritonclient_python: Path) -> None:
    def methods(files: FileDescriptorSet) -> set[tuple[str, str, str, bool, bool]]:
        return {
            (rpc.name, rpc.input_type, rpc.output_type, rpc.client_streaming, rpc.server_streaming)
            for file in files.file
            for service in file.service
            for rpc in service.method
        }

    theirs = methods(_descriptors(tritonclient_python))

    assert methods(oip_pb2.FILES) == theirs
    assert len(theirs) == 20


@pytest.mark.parametrize("order", [("dovetail.pb.oip", "tritonclient.grpc"), ("tritonclient.grpc", "dovetail.pb.oip")])
def test_both_protocols_can_be_imported_in_one_process(tritonclient_python: Path, order: tuple[str, str]) -> None:
    code = (
        f"import sys; sys.path.append({str(HERE.parents[1])!r}); import {order[0]}, {order[1]};"
        "from dovetail.pb import oip; from tritonclient.grpc import service_pb2 as theirs;"
        "data = theirs.ModelInferRequest(model_name='m', raw_input_contents=[b'1']).SerializeToString();"
        "assert oip.ModelInferRequest.FromString(data).raw_input_contents[0] == b'1'; print('fine')"
    )
    done = subprocess.run(
        [str(tritonclient_python), "-c", code], capture_output=True, text=True, check=False, env=clean_environment()
    )

    assert done.stdout.strip() == "fine", done.stderr


def _descriptors(python: Path) -> FileDescriptorSet:
    script = str(HERE / "tritonclient_descriptors.py")
    done = subprocess.run([str(python), script], capture_output=True, text=True, check=False, env=clean_environment())
    assert done.returncode == 0, done.stderr
    return FileDescriptorSet.FromString(base64.b64decode(done.stdout))


def _messages(files: FileDescriptorSet) -> dict[str, DescriptorProto]:
    found: dict[str, DescriptorProto] = {}

    def add(prefix: str, message: DescriptorProto) -> None:
        found[f"{prefix}.{message.name}"] = message
        for nested in message.nested_type:
            add(f"{prefix}.{message.name}", nested)

    for file in files.file:
        for message in file.message_type:
            add(f".{file.package}", message)
    return found


def _messages_of_service(files: FileDescriptorSet) -> list[str]:
    rpcs = [rpc for file in files.file for service in file.service for rpc in service.method]
    return [name for rpc in rpcs for name in (rpc.input_type, rpc.output_type)]


OURS_ALONE = {
    (".inference.ModelMetadataResponse", "properties")
}  # in the Open Inference Protocol, not in Triton's form


def _message_differences(name: str, ours: DescriptorProto, theirs: DescriptorProto | None) -> Iterator[str]:
    if theirs is None:
        if name != ".inference.ModelMetadataResponse.PropertiesEntry":
            yield f"{name} is not theirs"
        return
    their_fields = {field.number: field for field in theirs.field}
    our_numbers = {field.number for field in ours.field}
    reserved = {number for span in ours.reserved_range for number in range(span.start, span.end)}
    for field in ours.field:
        if (name, field.name) in OURS_ALONE:
            continue
        if field.number not in their_fields or _wire(ours, field) != _wire(theirs, their_fields[field.number]):
            yield f"{name}.{field.name} = {field.number} differs"
    for number in sorted(their_fields.keys() - our_numbers - reserved):
        yield f"{name}: {their_fields[number].name} = {number} is neither defined nor reserved"
    for number in sorted(reserved - their_fields.keys()):
        yield f"{name}: {number} is reserved for nothing"
    their_enums = {enum.name: _values(enum) for enum in theirs.enum_type}
    for enum in ours.enum_type:
        if their_enums.get(enum.name) != _values(enum):
            yield f"{name}.{enum.name} differs"


def _wire(message: DescriptorProto, field: FieldDescriptorProto) -> tuple[object, ...]:
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
    return (field.name, field.number, field.type, field.label, field.type_name, oneof, field.proto3_optional)


def _values(enum: EnumDescriptorProto) -> list[tuple[str, int]]:
    return [(value.name, value.number) for value in enum.value]
