# SPDX-License-Identifier: Apache-2.0
"""Runs a package through torch's own C++ loader, which needs torch's Python package: CUDA, and operators without a C
function (the loader finds those by name; `aotinductor_library` cannot).

The loader is called as torch's own `aoti_load_package` calls it, less a check that starts the C++ compiler to find out
about the CPU and then only warns.

Source: PyTorch 2.13.0, torch/_inductor/package/package.py (load_package), torch/export/pt2_archive/_package.py
    (AOTICompiledModel), torch/csrc/inductor/aoti_package/pybind.cpp; PyTorch issue 191715 (what the check costs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dovetail.engines.aotinductor_torch import wait_without_spinning
from dovetail.engines.torch_tensors import to_array, to_torch
from dovetail.errors import EngineError, UnsupportedError, brief
from dovetail.rules.aotinductor_package import MODEL, Signature
from dovetail.tensor import Array


class LoaderRunner:
    """A package in torch's loader; as many callers as there are streams run at once.

    On a GPU all work is queued on the calling thread's current stream and waited for.

    Raises:
        UnsupportedError: torch cannot be imported, or there is no GPU for it.
        EngineError: torch cannot load the package.
    """

    def __init__(
        self,
        path: Path,
        signature: Signature,
        *,
        device: str,
        streams: int,
        threads: int,
        tf32: bool,
        judge: Callable[[str], None],
    ) -> None:
        """`judge` is told the GPU's compute capability before the package is loaded, and raises to refuse it."""
        self._torch = _import_torch()
        self._signature = signature
        self._device = device
        self._threads = threads
        torch = self._torch
        if device == "cuda":
            if not torch.cuda.is_available():
                raise UnsupportedError("torch finds no GPU here: use an artifact for device cpu")
            judge(".".join(str(part) for part in torch.cuda.get_device_capability()))
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        torch.set_num_threads(threads)
        index = torch.cuda.current_device() if device == "cuda" else -1
        try:
            self._loader: Any = torch._C._aoti.AOTIModelPackageLoader(str(path), MODEL, False, streams, index)
        except Exception as exc:  # torch raises RuntimeError and others for what a library does at its start
            raise EngineError(f"torch cannot load the package: {_first_line(exc)}") from exc

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run once. The arrays fit the signature."""
        torch, signature = self._torch, self._signature
        torch.set_num_threads(self._threads)
        try:
            pairs = zip(signature.inputs, arrays, strict=True)
            tensors = [to_torch(spec, array, self._device) for spec, array in pairs]
            results = self._loader.boxed_run(tensors)
            return [to_array(spec, result) for spec, result in zip(signature.outputs, results, strict=True)]
        except EngineError:
            raise
        except Exception as exc:  # torch raises RuntimeError, ValueError and its own
            raise EngineError(f"the compiled model failed: {_first_line(exc)}") from exc

    def close(self) -> None:
        """Free the model."""
        self._loader = None


def _import_torch() -> Any:
    wait_without_spinning()
    try:
        import torch
        import torch._C._aoti
    except ImportError as exc:
        raise UnsupportedError("torch is not installed here: pip install 'dovetail[torch]'") from exc
    return torch


def _first_line(exc: Exception) -> str:
    text = str(exc).strip()
    return brief(text.splitlines()[0] if text else type(exc).__name__)
