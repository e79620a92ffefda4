# SPDX-License-Identifier: Apache-2.0
"""Runs the suite's models in Triton's Python backend: ONNX files with ONNX Runtime, Python models of ours as they are.

Triton starts it in processes of its own, in the venv of PyTriton, so it knows nothing of Dovetail. It is installed as
the backend `onnxruntime`, which PyTriton's Triton lacks, and as `model.py` of each Python model, whose own code lies
beside it as `own_model.py`. Requests, batches, sequences, streams and errors are Triton's; here is only what a backend
does: gather the rows, compute, scatter. Triton's Python backend has no implicit state, so states are kept here, by
sequence; their first value is Triton's.
"""

from __future__ import annotations

import json
import runpy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

PAUSE_S = (
    0.001  # between replies of a decoupled model: Triton holds back none that replies faster than its caller reads
)
START, END = 1, 2  # flags of a request: TRITONSERVER_REQUEST_FLAG_SEQUENCE_START and _END


@dataclass(frozen=True)
class Row:
    """A row's place in its sequence; one that is not ready fills the slot of a sequence without a request."""

    id: int | str
    start: bool
    end: bool
    ready: bool


class Request(dict):
    """What a Python model of ours is given: arrays by input, of all requests of the batch together."""

    def __init__(self, arrays: Mapping[str, np.ndarray], requests: Sequence[Any]) -> None:
        super().__init__(arrays)
        self._requests = requests
        self.sequences = [_row(request) for request in requests]

    @property
    def sequence(self) -> Row:
        return self.sequences[0]

    @property
    def cancelled(self) -> bool:
        return all(request.is_cancelled() for request in self._requests)


class Turn(Request):
    """One request of an iterative model, in one of its turns."""

    def __init__(self, arrays: Mapping[str, np.ndarray], request: Any, turn: int, state: object) -> None:
        super().__init__(arrays, [request])
        self.turn, self.state = turn, state
        self.replies: list[Mapping[str, np.ndarray]] = []
        self.error: str | None = None
        self.goes_on = False

    def reply(self, outputs: Mapping[str, np.ndarray]) -> None:
        self.replies.append(outputs)

    def again(self) -> None:
        self.goes_on = True

    def fail(self, error: object) -> None:
        self.error = str(error)


class OnnxModel:
    """An ONNX file as if it were a Python model of ours."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
        self._inputs = {tensor.name: tensor.type for tensor in self._session.get_inputs()}
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]

    def infer(self, request: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        feed = {
            name: _each(request[name], bytes.decode) if kind == "tensor(string)" else request[name]
            for name, kind in self._inputs.items()
        }
        return dict(zip(self._outputs, self._session.run(None, feed), strict=True))


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._batched = config["max_batch_size"] > 0
        self._decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self._dtypes = {
            output["name"]: pb_utils.triton_string_to_numpy(output["data_type"])
            for output in config["output"]
            if output["data_type"] != "TYPE_BF16"
        }
        self._states = {
            state["input_name"]: state["output_name"] for state in config.get("sequence_batching", {}).get("state", [])
        }
        self._iterative = config.get("sequence_batching", {}).get("iterative_sequence", False)
        self._kept: dict[tuple[int | str, str], np.ndarray] = {}
        self._turns: dict[int | str, tuple[int, object]] = {}
        folder = Path(args["model_repository"]) / args["model_version"]
        own = folder / "own_model.py"
        self._model: Any = runpy.run_path(str(own))["Model"]() if own.exists() else OnnxModel(folder / "model.onnx")
        if hasattr(self._model, "load"):
            self._model.load(None)

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        if self._iterative:
            return self._take_turns(requests)
        if self._decoupled:
            for request in requests:
                self._send_replies(request)
            return None
        if self._batched and self._dtypes:
            return self._run(requests)
        return [response for request in requests for response in self._run([request])]

    def _run(self, requests: Sequence[Any]) -> list[Any]:
        if not self._dtypes:  # BF16, which numpy lacks: an identity
            (tensor,) = requests[0].inputs()
            return [pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("y", tensor.to_dlpack())])]
        given = Request(self._gathered(requests), requests)
        outputs = self._model.infer(given)  # what it raises fails the batch, as in Triton's own backends
        self._keep(given.sequences, outputs)
        ends = np.cumsum([len(request.inputs()[0].as_numpy()) for request in requests])[:-1] if self._batched else []
        parts = {name: np.split(np.asarray(outputs[name]), ends) for name in self._dtypes}
        return [
            self._response(request, {name: part[place] for name, part in parts.items()})
            for place, request in enumerate(requests)
        ]

    def _take_turns(self, requests: Sequence[Any]) -> list[Any] | None:
        turns = [
            Turn(self._gathered([request]), request, *self._turns.pop(request.correlation_id(), (0, None)))
            for request in requests
        ]
        self._model.infer([turn for turn in turns if turn.sequence.ready])
        responses = [self._after(turn, request) for turn, request in zip(turns, requests, strict=True)]
        return None if self._decoupled else responses

    def _after(self, turn: Turn, request: Any) -> Any:
        """What a request gets after a turn: replies and the end if it is decoupled, else the response or none yet."""
        responses = [self._response(request, outputs) for outputs in turn.replies]
        if turn.error is not None:
            responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(turn.error)))
        if turn.goes_on:
            self._turns[turn.sequence.id] = (turn.turn + 1, turn.state)
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
        if not self._decoupled:
            return responses[0] if responses else None
        sender = request.get_response_sender()
        for response in responses:
            sender.send(response)
        if not turn.goes_on:
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None

    def _send_replies(self, request: Any) -> None:
        sender = request.get_response_sender()
        given = Request(self._gathered([request]), [request])
        try:
            replies: Iterator[Mapping[str, np.ndarray]] = self._model.infer(given)
            for outputs in replies:
                if given.cancelled:
                    replies.close()  # type: ignore[attr-defined]
                    break
                self._keep(given.sequences, outputs)
                sender.send(self._response(request, outputs))
                time.sleep(PAUSE_S)
        except Exception as error:  # what a model raises is its callers' answer
            failure = pb_utils.TritonError(f"{type(error).__name__}: {error}")
            sender.send(pb_utils.InferenceResponse(error=failure))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _gathered(self, requests: Sequence[Any]) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for name in [tensor.name() for tensor in requests[0].inputs()]:
            parts = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            if name in self._states:
                rows = [_row(request) for request in requests]
                parts = [
                    part if row.start else self._kept.get((row.id, self._states[name]), part)
                    for row, part in zip(rows, parts, strict=True)
                ]
            arrays[name] = np.concatenate(parts) if len(parts) > 1 else parts[0]
        return arrays

    def _keep(self, rows: Sequence[Row], outputs: Mapping[str, np.ndarray]) -> None:
        for place, row in enumerate(rows):
            for name in self._states.values() if row.ready else ():
                self._kept[row.id, name] = np.asarray(outputs[name])[place : place + 1]

    def _response(self, request: Any, outputs: Mapping[str, np.ndarray]) -> Any:
        wanted = [name for name in request.requested_output_names() if name in outputs]
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, self._array(name, outputs[name])) for name in wanted])

    def _array(self, name: str, values: Any) -> np.ndarray:
        array = np.asarray(values)
        if self._dtypes[name] is np.object_:
            return _each(array, lambda text: text.encode() if isinstance(text, str) else text)
        return array.astype(self._dtypes[name], copy=False)


def _row(request: Any) -> Row:
    flags, sequence = request.flags(), request.correlation_id()
    return Row(sequence, bool(flags & START), bool(flags & END), ready=sequence not in (0, ""))


def _each(array: np.ndarray, change: Any) -> np.ndarray:
    changed = np.empty(array.shape, object)
    changed.flat[:] = [change(item) for item in array.flat]
    return changed
