# SPDX-License-Identifier: Apache-2.0
"""A model's own code, in its own process: found, called, and its replies checked.

What it raises is reported by type and text; the traceback goes to standard error, which is the node's log.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.errors import EngineError
from dovetail.tensor import NUMPY_DTYPES, Array, TensorSpec
from runtime_svc.python_models.open_request import OpenRequest
from runtime_svc.python_models.user_objects import Context, Request, Sequence

FILE = "model.py"
CLASS = "Model"


class UserModel:
    """The instance of a file's class `Model`.

    Args:
        context: What `load` is given.

    Raises:
        EngineError: The file has no such class, or the class no `infer`.
        Exception: Whatever its code raises.
    """

    def __init__(self, context: Context) -> None:
        module = _import_file(context.folder / FILE)
        kind = getattr(module, CLASS, None)
        if not isinstance(kind, type):
            raise EngineError(f"{FILE} has no class {CLASS}")
        self._model = kind()
        infer = getattr(self._model, "infer", None)
        if not callable(infer):
            raise EngineError(f"class {CLASS} of {FILE} has no method infer")
        self._infer: Callable[[Any], object] = infer
        batched = context.max_batch_size > 0 and not context.decoupled
        self._outputs = {
            spec.name: TensorSpec(spec.name, spec.datatype, (-1, *spec.shape[1:]) if batched else spec.shape)
            for spec in context.outputs
        }
        self._batched, self._decoupled = batched, context.decoupled
        load = getattr(self._model, "load", None)
        if load is not None:
            load(context)

    def infer(self, request: Request) -> dict[str, Array]:
        """The one reply.

        Raises:
            EngineError: It is not what the configuration says.
            Exception: Whatever the model's code raises.
        """
        reply = self._infer(request)
        if isinstance(reply, types.GeneratorType):
            reply.close()
            raise EngineError("infer yields replies, but the configuration does not say that the model is decoupled")
        return self._checked(reply, request)

    def replies(self, request: Request) -> Generator[dict[str, Array], None, None]:
        """All replies of a decoupled model: what it yields, or the one it returns, or none.

        Raises:
            EngineError: One is not what the configuration says.
            Exception: Whatever the model's code raises.
        """
        result = self._infer(request)
        if result is None:
            return
        if isinstance(result, Mapping):
            yield self._checked(result, request)
            return
        if not isinstance(result, Iterator):
            raise EngineError(f"infer gave a {type(result).__name__}; expected a dict of outputs, or to yield such")
        try:
            for reply in result:
                yield self._checked(reply, request)
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def open_request(
        self,
        inputs: Mapping[str, Array],
        *,
        rows: int,
        sequences: tuple[Sequence, ...] = (),
        deadline_s: float | None = None,
    ) -> OpenRequest:
        """A request of an iterative model, to be given to `turns`."""
        return OpenRequest(
            inputs,
            rows=rows,
            sequences=sequences,
            deadline_s=deadline_s,
            check=self._checked,
            decoupled=self._decoupled,
        )

    def turns(self, requests: list[OpenRequest]) -> None:
        """A turn of each of these requests.

        Raises:
            EngineError: `infer` gave something back instead of asking the requests.
            Exception: Whatever the model's code raises.
        """
        given = self._infer(list(requests))
        if given is not None:
            if isinstance(given, types.GeneratorType):
                given.close()
            raise EngineError(
                f"infer gave a {type(given).__name__}; a model with iterative_sequence replies with request.reply, and"
                " asks for another turn with request.again"
            )

    def unload(self) -> None:
        """Let it tidy up.

        Raises:
            Exception: Whatever the model's code raises.
        """
        unload = getattr(self._model, "unload", None)
        if unload is not None:
            unload()

    def _checked(self, reply: object, request: Request) -> dict[str, Array]:
        if not isinstance(reply, Mapping):
            raise EngineError(f"infer gave a {type(reply).__name__}; expected a dict of outputs by name")
        for name in reply:
            if name not in self._outputs:
                raise EngineError(f"infer gave an output '{name}', which the configuration does not have")
        missing = [name for name in self._outputs if name not in reply]
        if missing and not self._decoupled:
            raise EngineError(f"infer gave no output '{missing[0]}'")
        rows = request.rows if self._batched else None
        return {name: _as_output(reply[name], spec, rows) for name, spec in self._outputs.items() if name in reply}


def _import_file(file: Path) -> types.ModuleType:
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location("model", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise EngineError(f"there is no {FILE}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module
    spec.loader.exec_module(module)
    return module


def _as_output(value: Any, spec: TensorSpec, rows: int | None) -> Array:
    wanted = NUMPY_DTYPES[spec.datatype]
    array = value if isinstance(value, np.ndarray) else np.asarray(value, dtype=wanted)
    if spec.datatype == "BYTES":
        array = _as_text(array, spec.name)
    elif array.dtype != wanted:
        raise EngineError(
            f"output '{spec.name}' has dtype {array.dtype}, but the configuration says {spec.datatype}:"
            f" convert it to {wanted} in infer"
        )
    if not spec.accepts(array.shape):
        raise EngineError(
            f"output '{spec.name}' has shape {list(array.shape)}, but the configuration says {list(spec.shape)}"
        )
    if rows is not None and array.shape[0] != rows:
        raise EngineError(f"output '{spec.name}' has {array.shape[0]} rows for {rows} rows of input")
    return array


def _as_text(array: Array, name: str) -> Array:
    if array.dtype.kind not in "OSU":
        raise EngineError(f"output '{name}' has dtype {array.dtype}, but the configuration says BYTES")
    flat = np.empty(array.size, dtype=object)
    for place, element in enumerate(array.ravel().tolist()):
        if not isinstance(element, bytes | bytearray | str):
            raise EngineError(f"output '{name}' has an element of type {type(element).__name__}; expected bytes or str")
        flat[place] = element.encode() if isinstance(element, str) else bytes(element)
    return flat.reshape(array.shape)
