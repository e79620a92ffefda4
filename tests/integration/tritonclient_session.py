# SPDX-License-Identifier: Apache-2.0
"""Run by test_tritonclient.py in the venv of the unmodified tritonclient, with the server's address and a folder.

Does what users do and prints one JSON document of what came back. Knows nothing of Dovetail.
"""

from __future__ import annotations

import json
import queue
import sys
import uuid
from functools import partial

import ml_dtypes
import numpy as np
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, serialize_byte_tensor

VALUES = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 1, 255]], np.uint8),
    "UINT16": np.array([[0, 1, 65535]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 0, 127]], np.int8),
    "INT16": np.array([[-32768, 0, 32767]], np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 0, 2**63 - 1]], np.int64),
    "FP16": np.array([[np.nan, -65504.0, 0.5]], np.float16),
    "BF16": np.array([[1.0, -2.5, 3e38]], ml_dtypes.bfloat16),
    "FP32": np.array([[np.nan, np.inf, 1e-45]], np.float32),
    "FP64": np.array([[np.nan, -np.inf, 5e-324]], np.float64),
    "BYTES": np.array([[b"", "ä€".encode(), b"x" * 1000]], np.object_),
}


def image_input(images: np.ndarray) -> list[triton.InferInput]:
    tensor = triton.InferInput("image", list(images.shape), np_to_triton_dtype(images.dtype))
    tensor.set_data_from_numpy(images)
    return [tensor]


def digits_of(result: triton.InferResult) -> list[int]:
    return result.as_numpy("logits").argmax(axis=1).tolist()


def describe(client: triton.InferenceServerClient) -> dict:
    def as_json(call, *args):
        return call(*args, as_json=True)

    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready("digits"),
        "version_ready": client.is_model_ready("digits", "1"),
        "unknown_ready": client.is_model_ready("unknown"),
        "server": as_json(client.get_server_metadata),
        "metadata": as_json(client.get_model_metadata, "digits"),
        "config": as_json(client.get_model_config, "digits"),
        "index": as_json(client.get_model_repository_index),
    }


def infer(client: triton.InferenceServerClient, images: np.ndarray) -> dict:
    result = client.infer(
        "digits", image_input(images[:8]), request_id="one", outputs=[triton.InferRequestedOutput("logits")],
        priority=1, timeout=10_000_000,
    )  # fmt: skip
    response = result.get_response()
    answers: queue.Queue = queue.Queue()
    for start in range(0, 40, 4):
        client.async_infer(
            "digits",
            image_input(images[start : start + 4]),
            partial(lambda answers, start, result, error: answers.put((start, result, error)), answers, start),
        )
    arrived = [answers.get(timeout=60) for _ in range(10)]
    return {
        "digits": digits_of(result),
        "id": response.id,
        "version": response.model_version,
        "artifact": response.parameters["dovetail_artifact"].string_param,
        "async_errors": [str(error) for _, _, error in arrived if error is not None],
        "async_digits": [d for _, result, _ in sorted(arrived, key=lambda item: item[0]) for d in digits_of(result)],
    }


def stream(client: triton.InferenceServerClient, images: np.ndarray) -> dict:
    answers: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(20):
        if number == 5:  # one that fails in the middle must not end the stream
            client.async_stream_infer("digits", image_input(images[:1, :, :4]), request_id="bad")
        client.async_stream_infer(
            "digits", image_input(images[number : number + 1]), request_id=str(number),
            enable_empty_final_response=number % 2 == 0,
        )  # fmt: skip
    client.stop_stream()  # half-closes, then waits for what is in flight
    arrived = [answers.get(timeout=60) for _ in range(21)]
    good = [result.get_response() for result, _ in arrived if result is not None]
    return {
        "order": [response.id for response in good],
        "final": [response.parameters["triton_final_response"].bool_param for response in good],
        "digits": [digits_of(result)[0] for result, _ in arrived if result is not None],
        "errors": [str(error) for _, error in arrived if error is not None],
        "error_position": [error is not None for _, error in arrived].index(True),
        "nothing_else": answers.empty(),
    }


def datatypes(client: triton.InferenceServerClient) -> dict:
    return {name: round_trip(client, name, values) for name, values in VALUES.items()}


def round_trip(client: triton.InferenceServerClient, name: str, values: np.ndarray) -> str:
    tensor = triton.InferInput("x", list(values.shape), name)
    tensor.set_data_from_numpy(values)
    back = client.infer(f"identity-{name.lower()}", [tensor]).as_numpy("y")
    if back.dtype != values.dtype or back.shape != values.shape:
        return f"sent {values.dtype} {values.shape}, got {back.dtype} {back.shape}"
    same = back.tolist() == values.tolist() if name == "BYTES" else back.tobytes() == values.tobytes()
    return "same" if same else f"sent {values.tolist()}, got {back.tolist()}"


def shared_memory(client: triton.InferenceServerClient, images: np.ndarray) -> dict:
    """The client's own utilities: images in through one region, logits out through another."""
    key = f"/dovetail_tritonclient_{uuid.uuid4().hex}"
    images_region = shm.create_shared_memory_region("images", f"{key}_in", images[:4].nbytes)
    logits_region = shm.create_shared_memory_region("logits", f"{key}_out", 4 * 10 * 4)
    try:
        shm.set_shared_memory_region(images_region, [images[:4]])
        client.register_system_shared_memory("images", f"{key}_in", images[:4].nbytes)
        client.register_system_shared_memory("logits", f"{key}_out", 4 * 10 * 4)
        tensor = triton.InferInput("image", [4, 1, 8, 8], "FP32")
        tensor.set_shared_memory("images", images[:4].nbytes)
        output = triton.InferRequestedOutput("logits")
        output.set_shared_memory("logits", 4 * 10 * 4)
        described = client.infer("digits", [tensor], outputs=[output]).get_output("logits")
        logits = shm.get_contents_as_numpy(logits_region, np.float32, list(described.shape))
        digits = logits.argmax(axis=1).tolist()
        del logits
        listed = client.get_system_shared_memory_status(as_json=True)["regions"]
        again = failure(lambda: client.register_system_shared_memory("images", f"{key}_in", 8))
        client.unregister_system_shared_memory("images")
        gone = failure(lambda: client.infer("digits", [tensor]))
        client.unregister_system_shared_memory()
        left = client.get_system_shared_memory_status(as_json=True)
    finally:
        shm.destroy_shared_memory_region(images_region)
        shm.destroy_shared_memory_region(logits_region)
    return {"digits": digits, "listed": listed, "again": again, "gone": gone, "left": left}


def shared_texts(client: triton.InferenceServerClient) -> list[str]:
    """BYTES through a region, in the client's own serialisation."""
    packed = serialize_byte_tensor(VALUES["BYTES"]).item()
    region = shm.create_shared_memory_region("texts", f"/dovetail_tritonclient_{uuid.uuid4().hex}", 2 * len(packed))
    try:
        region._mpsm_handle.buf[: len(packed)] = packed
        client.register_system_shared_memory("texts", region._shm_key, 2 * len(packed))
        tensor = triton.InferInput("x", [1, 3], "BYTES")
        tensor.set_shared_memory("texts", len(packed))
        output = triton.InferRequestedOutput("y")
        output.set_shared_memory("texts", len(packed), offset=len(packed))
        client.infer("identity-bytes", [tensor], outputs=[output])
        return [text.decode() for text in shm.get_contents_as_numpy(region, np.object_, [3], offset=len(packed))]
    finally:
        client.unregister_system_shared_memory("texts")
        shm.destroy_shared_memory_region(region)


def settings(client: triton.InferenceServerClient) -> dict:
    logs = client.get_log_settings(as_json=True)["settings"]
    client.update_log_settings({"log_verbose_level": 0})
    return {
        "log": sorted(logs),
        "trace": client.update_trace_settings("digits", {"trace_rate": "7"}, as_json=True)["settings"],
        "cleared": client.update_trace_settings("digits", {"trace_rate": None}, as_json=True)["settings"],
    }


def classes(client: triton.InferenceServerClient, images: np.ndarray) -> list[int]:
    output = triton.InferRequestedOutput("logits", class_count=3)
    top = client.infer("digits", image_input(images[:8]), outputs=[output]).as_numpy("logits")
    return [int(row[0].decode().split(":")[1]) for row in top]


def failures(client: triton.InferenceServerClient, images: np.ndarray) -> dict:
    wrong_type = image_input(images[:1].astype(np.float64))
    calls = {
        "unknown_model": lambda: client.infer("nope", image_input(images[:1])),
        "unknown_version": lambda: client.infer("digits", image_input(images[:1]), model_version="7"),
        "version_text": lambda: client.infer("digits", image_input(images[:1]), model_version="one"),
        "no_inputs": lambda: client.infer("digits", []),
        "datatype": lambda: client.infer("digits", wrong_type),
        "shape": lambda: client.infer("digits", image_input(images[:1, :, :4])),
        "rows": lambda: client.infer("digits", image_input(images[:9])),
        "output": lambda: client.infer(
            "digits", image_input(images[:1]), outputs=[triton.InferRequestedOutput("nope")]
        ),
        "metadata": lambda: client.get_model_metadata("nope"),
        "load": lambda: client.load_model("digits"),
        "shared_memory": lambda: client.get_system_shared_memory_status("nope"),
        "cuda": lambda: client.register_cuda_shared_memory("gpu", bytes(64), 0, 64),
    }
    return {name: failure(call) for name, call in calls.items()}


def failure(call) -> list[str]:
    try:
        call()
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return ["none", ""]


def main() -> None:
    address, folder = sys.argv[1], sys.argv[2]
    images = np.load(f"{folder}/images.npy", allow_pickle=False)
    with triton.InferenceServerClient(address) as client:
        results = {
            "describe": describe(client),
            "infer": infer(client, images),
            "stream": stream(client, images),
            "datatypes": datatypes(client),
            "failures": failures(client, images),
            "statistics": client.get_inference_statistics("digits", as_json=True),
            "shared_memory": shared_memory(client, images),
            "shared_texts": shared_texts(client),
            "settings": settings(client),
            "classes": classes(client, images),
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
