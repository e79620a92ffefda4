# SPDX-License-Identifier: Apache-2.0
"""Runs exported programs with torch's Python package, eager or by torch.compile: for measuring baselines, nothing else.

A program is foreign, and torch evaluates parts of it while it reads. So this engine loads only in a process that was
confined for that, which tells it by its environment, and no node is such a process. Contracts of baselines are refused
before that by negotiation and by every node; this is the second lock.

Source: PyTorch 2.13, torch.export.load (which parses expressions with sympy), torch.compile.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dovetail.engines.aotinductor_torch import wait_without_spinning
from dovetail.engines.base import Engine, SessionOptions
from dovetail.engines.torch_tensors import to_array, to_torch
from dovetail.errors import EngineError, UnsupportedError, brief
from dovetail.rules.aotinductor_package import MAX_METADATA_BYTES, Signature
from dovetail.rules.torch_rules import EAGER, MODES
from dovetail.tensor import Array

ENGINE = "torch"
PROGRAM = "program.pt2"
SIGNATURE = "signature.json"

CONFINED = "DOVETAIL_CONFINED"
"""Environment variable of processes that were started with few rights; the build's child and its children have it."""


def create() -> Engine:
    """The engine; torch is imported when something is loaded.

    Raises:
        UnsupportedError: torch is not installed here.
    """
    if importlib.util.find_spec("torch") is None:
        raise UnsupportedError("torch is not installed here: pip install 'dovetail[torch]'")
    return TorchEngine()


class TorchEngine:
    """torch's own ways to run a program."""

    name = ENGINE

    def load(self, files: Mapping[str, Path], options: SessionOptions) -> TorchSession:
        """Load the program. `options.optimize` changes nothing: the contract's `mode` says what is measured.

        Raises:
            UnsupportedError: This process is not confined, the mode is unknown, or there is no such device.
            EngineError: Files are missing, or torch cannot read them.
        """
        if CONFINED not in os.environ:
            raise UnsupportedError(
                "engine torch opens foreign programs, so it only runs in a build's confined child: a baseline is "
                "measured for comparison and never served"
            )
        mode = str(options.details.get("mode", ""))
        if mode not in MODES.values():
            raise UnsupportedError(f"there is no mode {mode!r} of torch, only {', '.join(MODES.values())}")
        if PROGRAM not in files or SIGNATURE not in files:
            raise EngineError(f"torch needs {PROGRAM} and {SIGNATURE}, the artifact has {sorted(files) or 'none'}")
        signature = _signature(files[SIGNATURE])
        return TorchSession(files[PROGRAM], signature, mode, options)


class TorchSession:
    """A program in torch; one caller at a time. torch.compile compiles at the first run of each kind of shape."""

    concurrent = False

    def __init__(self, path: Path, signature: Signature, mode: str, options: SessionOptions) -> None:
        wait_without_spinning()
        import torch
        from torch.utils import _pytree as pytree

        self.inputs = signature.inputs
        self.outputs = signature.outputs
        self._torch, self._pytree = torch, pytree
        self._signature = signature
        self._device = options.device
        self._threads = options.threads
        if self._device == "cuda" and not torch.cuda.is_available():
            raise UnsupportedError("torch finds no GPU here")
        torch.set_num_threads(options.threads)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of its own use of what it deprecates
                program = torch.export.load(str(path))
                if self._device == "cuda":
                    program = _moved(program, self._device)
        except Exception as exc:  # torch raises what its parsers raise
            raise EngineError(f"torch cannot read the program: {brief(str(exc))}") from exc
        self._in_spec = program.call_spec.in_spec
        self._arguments = [item for item in program.graph_signature.input_specs if item.kind.name == "USER_INPUT"]
        module = program.module()
        self._call: Any = module if mode == EAGER else torch.compile(module, mode=mode)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; the returned arrays own their memory.

        Raises:
            EngineError: An input does not fit, or torch failed.
        """
        if feeds.keys() != {spec.name for spec in self.inputs}:
            raise EngineError(f"the model takes {[spec.name for spec in self.inputs]}, the call brings {sorted(feeds)}")
        if misfit := self._signature.misfit(feeds[spec.name].shape for spec in self.inputs):
            raise EngineError(misfit)
        torch = self._torch
        torch.set_num_threads(self._threads)
        tensors = iter([to_torch(spec, feeds[spec.name], self._device) for spec in self.inputs])
        flat = [next(tensors) if _is_tensor(item) else item.arg.value for item in self._arguments]
        args, kwargs = self._pytree.tree_unflatten(flat, self._in_spec)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results = self._call(*args, **kwargs)
        except Exception as exc:  # operators and compilers raise RuntimeError, ValueError and torch's own
            raise EngineError(f"torch failed while running: {_first_line(exc)}") from exc
        found = [item for item in self._pytree.tree_leaves(results) if isinstance(item, torch.Tensor)]
        return {spec.name: to_array(spec, tensor) for spec, tensor in zip(self.outputs, found, strict=True)}

    def close(self) -> None:
        """Free the program."""
        self._call = None


def _signature(path: Path) -> Signature:
    if path.stat().st_size > MAX_METADATA_BYTES:
        raise EngineError(f"{SIGNATURE} has more than {MAX_METADATA_BYTES} bytes")
    return Signature.from_text(path.read_text(encoding="utf-8"))


def _moved(program: Any, device: str) -> Any:
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device)


def _is_tensor(item: Any) -> bool:
    return type(item.arg).__name__ == "TensorArgument"


def _first_line(exc: Exception) -> str:
    text = str(exc).strip()
    return brief(text.splitlines()[0] if text else type(exc).__name__)
