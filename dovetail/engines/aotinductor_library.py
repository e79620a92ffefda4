# SPDX-License-Identifier: Apache-2.0
"""Runs the compiled library of a CPU package on libtorch alone, without torch's Python package.

Torch's C++ loader is reached from Python through `torch._C._aoti`, and importing that imports all of torch. The loader
itself unpacks the package, opens the library in it, and calls two C interfaces that torch keeps for programs without
Python. Those are called here directly:

* of the compiled library: `AOTInductorModelContainer…` (aoti_runtime/interface.h);
* of libtorch_cpu.so: `aoti_torch_…` (aoti_torch/c/shim.h), and `at::set_num_threads`.

What it costs to get ready (torch 2.13.0+cpu, Python 3.11, 2 cores of an EPYC Milan that others used as well): `import
torch` 1.7 to 2.7 s and 207 MiB. `import torch._C` with an empty parent package 0.28 s and 118 MiB, but then the first
tensor is a segmentation fault, because its Python class is missing. This 0.2 to 0.3 s and 102 MiB, and a later `import
torch` in the same process works.

Inputs are used where they lie. Outputs are copied out: one may be a view of an input or of a weight.

Threads: torch's number of threads belongs to the process and to the thread that asks, so it is set before every run.
Two sessions with different numbers that run at once in one process may take each other's on their first run.

Source: PyTorch 2.13.0, torch/csrc/inductor/aoti_runtime/interface.h, torch/csrc/inductor/aoti_torch/c/shim.h,
    torch/csrc/inductor/aoti_package/model_package_loader.cpp, aten/src/ATen/Parallel.h.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.engines.aotinductor_torch import wait_without_spinning
from dovetail.engines.torch_tensors import TORCH_NAMES
from dovetail.errors import EngineError, OverLimitError, UnsupportedError, brief
from dovetail.rules.aotinductor_package import Package, Signature
from dovetail.tensor import NUMPY_DTYPES, Array, TensorSpec

_CPU = b"cpu"
_SET_NUM_THREADS = "_ZN2at15set_num_threadsEi"  # at::set_num_threads(int), which has no C name
_HANDLE = ctypes.c_void_p
_HANDLES = ctypes.POINTER(ctypes.c_void_p)
_SIZES = ctypes.POINTER(ctypes.c_int64)
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/:'\"]+/)+")


class Libtorch:
    """libtorch_cpu.so, loaded once for the process however often this is made; safe for concurrent use.

    Raises:
        UnsupportedError: It does not load by itself, or lacks a function; torch's own loader may still work.
    """

    def __init__(self, folder: Path) -> None:
        wait_without_spinning()
        try:
            library = ctypes.CDLL(str(folder / "libtorch_cpu.so"))
            self.set_threads = getattr(library, _SET_NUM_THREADS)
            self._make = library.aoti_torch_create_tensor_from_blob
            self._delete = library.aoti_torch_delete_tensor_object
            self._data = library.aoti_torch_get_data_ptr
            self._rank = library.aoti_torch_get_dim
            self._sizes = library.aoti_torch_get_sizes
            self._strides = library.aoti_torch_get_strides
            self._dtype = library.aoti_torch_get_dtype
            codes = {name: getattr(library, f"aoti_torch_dtype_{torch}")() for name, torch in TORCH_NAMES.items()}
            self._cpu = library.aoti_torch_device_type_cpu()
        except (OSError, AttributeError) as exc:
            raise UnsupportedError(f"libtorch does not load by itself here: {brief(str(exc))}") from exc
        self._codes: Mapping[str, int] = codes
        self.set_threads.argtypes, self.set_threads.restype = [ctypes.c_int], None
        rank, offset, kind = ctypes.c_int64, ctypes.c_int64, ctypes.c_int32
        self._make.argtypes = [ctypes.c_void_p, rank, _SIZES, _SIZES, offset, kind, kind, kind, _HANDLES]
        self._delete.argtypes = [_HANDLE]
        self._data.argtypes = [_HANDLE, _HANDLES]
        self._rank.argtypes = [_HANDLE, _SIZES]
        self._sizes.argtypes = self._strides.argtypes = [_HANDLE, ctypes.POINTER(_SIZES)]
        self._dtype.argtypes = [_HANDLE, ctypes.POINTER(ctypes.c_int32)]

    def wrap(self, spec: TensorSpec, array: Array) -> Any:
        """A handle of a tensor that uses the array's memory; the array must outlive it, and be contiguous."""
        handle, rank = _HANDLE(), array.ndim
        sizes = (ctypes.c_int64 * rank)(*array.shape)
        strides = (ctypes.c_int64 * rank)(*(step // array.itemsize for step in array.strides))
        code = self._codes[spec.datatype]
        _check(
            self._make(array.ctypes.data, rank, sizes, strides, 0, code, self._cpu, 0, ctypes.byref(handle)),
            f"libtorch does not take input {spec.name!r}",
        )
        return handle

    def copy_out(self, spec: TensorSpec, handle: Any) -> Array:
        """The tensor behind a handle as an array of its own.

        Raises:
            EngineError: It has another type than the package promised.
        """
        what = f"libtorch does not give output {spec.name!r}"
        data, rank, dtype, sizes, strides = _HANDLE(), ctypes.c_int64(), ctypes.c_int32(), _SIZES(), _SIZES()
        _check(self._data(handle, ctypes.byref(data)), what)
        _check(self._rank(handle, ctypes.byref(rank)), what)
        _check(self._dtype(handle, ctypes.byref(dtype)), what)
        _check(self._sizes(handle, ctypes.byref(sizes)), what)
        _check(self._strides(handle, ctypes.byref(strides)), what)
        if dtype.value != self._codes[spec.datatype]:
            raise EngineError(f"output {spec.name!r} has another type than {spec.datatype}, which its signature says")
        shape = tuple(sizes[: rank.value])
        if 0 in shape:
            return np.empty(shape, NUMPY_DTYPES[spec.datatype])
        steps = tuple(strides[: rank.value])
        reach = 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
        item = NUMPY_DTYPES[spec.datatype]
        memory = (ctypes.c_char * (reach * item.itemsize)).from_address(data.value or 0)
        flat: Array = np.frombuffer(memory, dtype=item)
        view = np.lib.stride_tricks.as_strided(flat, shape, tuple(step * item.itemsize for step in steps))
        return np.array(view, order="C")

    def free(self, handle: Any) -> None:
        """Give a handle back."""
        self._delete(handle)


class LibraryRunner:
    """A compiled library with as many instances of the model as there are streams; they share the weights."""

    def __init__(
        self, libtorch: Libtorch, path: Path, package: Package, signature: Signature, *, streams: int, threads: int
    ) -> None:
        self._torch = libtorch
        self._signature = signature
        self._threads = threads
        libtorch.set_threads(threads)
        with _unpacked(path, package.library) as file:
            self._code = _opened(file)
            self._model = self._made(streams)  # large weights are mapped from the file now
        self._run = self._code.AOTInductorModelContainerRun
        self._run.argtypes = [_HANDLE, _HANDLES, ctypes.c_size_t, _HANDLES, ctypes.c_size_t, _HANDLE, _HANDLE]
        counts = (self._count("GetNumInputs"), self._count("GetNumOutputs"))
        if counts != (len(signature.inputs), len(signature.outputs)):
            self.close()
            raise EngineError(f"the library has {counts} inputs and outputs, its signature says otherwise")

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run once; waits while all instances are busy. The arrays are contiguous and fit the signature."""
        signature = self._signature
        self._torch.set_threads(self._threads)
        pairs = zip(signature.inputs, arrays, strict=True)
        handles = (_HANDLE * len(arrays))(*(self._torch.wrap(spec, array) for spec, array in pairs))
        results = (_HANDLE * len(signature.outputs))()
        # The handles of the inputs are taken over by the call, also if it fails.
        if self._run(self._model, handles, len(handles), results, len(results), None, None):
            raise EngineError(f"the compiled model failed: {self._last_words()}")
        try:
            found = zip(signature.outputs, results, strict=True)
            return [self._torch.copy_out(spec, _HANDLE(result)) for spec, result in found]
        finally:
            for result in results:
                self._torch.free(_HANDLE(result))

    def close(self) -> None:
        """Free the model; the library's code stays mapped, because nothing says that its threads have ended."""
        model, self._model = self._model, _HANDLE()
        if model:
            delete = self._code.AOTInductorModelContainerDelete
            delete.argtypes = [_HANDLE]
            delete(model)

    def _made(self, streams: int) -> Any:
        model = _HANDLE()
        create = self._code.AOTInductorModelContainerCreateWithDevice
        create.argtypes = [_HANDLES, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p]
        if create(ctypes.byref(model), streams, _CPU, b""):
            raise EngineError(f"the compiled model does not load: {self._last_words()}")
        return model

    def _last_words(self) -> str:
        """Why the last call of this thread failed, without folders of the machine that compiled it."""
        text = ctypes.c_char_p()
        ask = self._code.AOTInductorGetLastError
        ask.argtypes = [ctypes.POINTER(ctypes.c_char_p)]
        if ask(ctypes.byref(text)) or not text.value:
            return "it gives no reason"
        return brief(_FOLDERS.sub("", text.value.decode(errors="replace")))

    def _count(self, what: str) -> int:
        number = ctypes.c_size_t()
        ask = getattr(self._code, f"AOTInductorModelContainer{what}")
        ask.argtypes = [_HANDLE, ctypes.POINTER(ctypes.c_size_t)]
        _check(ask(self._model, ctypes.byref(number)), f"the library does not answer {what}")
        return number.value


@contextmanager
def _unpacked(path: Path, member: str) -> Iterator[Path]:
    """One member as a file in a private folder, while the block runs."""
    try:
        with tempfile.TemporaryDirectory(prefix="dovetail-aotinductor-") as folder:
            target = Path(folder) / "model.so"
            with zipfile.ZipFile(path) as archive, archive.open(member) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            yield target
    except (zipfile.BadZipFile, KeyError) as exc:
        raise EngineError(f"the package cannot be unpacked: {brief(str(exc))}") from exc
    except OSError as exc:
        raise OverLimitError(f"the compiled model cannot be unpacked: {exc.strerror or 'no room'}") from exc


def _opened(file: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(file))
    except OSError as exc:
        raise EngineError(f"the compiled model does not load: {brief(_FOLDERS.sub('', str(exc)))}") from exc


def _check(status: int, what: str) -> None:
    if status:
        raise EngineError(what)
