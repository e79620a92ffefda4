# SPDX-License-Identifier: Apache-2.0
"""What an unmodified tritonclient does with a server: unary, streamed, shared memory, sequences, many replies.

    python tritonclient_tour.py HOST:PORT

Prints one line for each; ends with an error at the first that is wrong. Knows nothing of Dovetail.
"""

from __future__ import annotations

import queue
import sys
from importlib.metadata import version

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import shared_memory


def tensor(name: str, values: np.ndarray, datatype: str) -> triton.InferInput:
    given = triton.InferInput(name, list(values.shape), datatype)
    given.set_data_from_numpy(values)
    return given


def replies_of(client: triton.InferenceServerClient, count: int, *calls: dict) -> list:
    """Send requests on a stream and take that many replies."""
    got: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: got.put(error or result))
    for call in calls:
        client.async_stream_infer(**call)
    results = [got.get(timeout=30) for _ in range(count)]
    client.stop_stream()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def main(address: str) -> None:
    client = triton.InferenceServerClient(address)
    assert client.is_server_ready()
    row = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 16)
    expected = client.infer("mlp", [tensor("x", row, "FP32")]).as_numpy("y")
    print(f"tritonclient {version('tritonclient')}, grpcio {version('grpcio')}: unary {expected.round(3).tolist()}")

    streamed = replies_of(client, 8, *[{"model_name": "mlp", "inputs": [tensor("x", row, "FP32")]}] * 8)
    assert all(np.allclose(result.as_numpy("y"), expected) for result in streamed)
    print("streamed: 8 replies, all the same")

    region = shared_memory.create_shared_memory_region("tour", "/dovetail_tour", row.nbytes)
    try:
        shared_memory.set_shared_memory_region(region, [row])
        client.register_system_shared_memory("tour", "/dovetail_tour", row.nbytes)
        given = triton.InferInput("x", [1, 16], "FP32")
        given.set_shared_memory("tour", row.nbytes)
        assert np.allclose(client.infer("mlp", [given]).as_numpy("y"), expected)
        client.unregister_system_shared_memory("tour")
    finally:
        shared_memory.destroy_shared_memory_region(region)
    print("system shared memory: the same reply")

    sums = []
    for step in range(4):
        values = np.array([[step + 1]], np.int32)
        result = client.infer(
            "onnx_sequence_int32",
            [tensor("INPUT", values, "INT32")],
            sequence_id=7,
            sequence_start=step == 0,
            sequence_end=step == 3,
        )
        sums.append(int(result.as_numpy("OUTPUT").item()))
    assert sums == [1, 3, 6, 10], sums
    print(f"sequence with implicit state: {sums}")

    count = np.array([3], np.int32)
    call = {"model_name": "square_int32", "inputs": [tensor("IN", count, "INT32")]}
    results = replies_of(client, 4, {**call, "enable_empty_final_response": True})
    finals = [result.get_response().parameters["triton_final_response"].bool_param for result in results]
    assert finals == [False, False, False, True], finals
    print(f"decoupled: 3 replies and an empty last one, final flags {finals}")


if __name__ == "__main__":
    main(sys.argv[1])
