# SPDX-License-Identifier: Apache-2.0
"""Opens ONNX Runtime sessions on NVIDIA GPUs, and refuses those that the library quietly moved to the CPU.

A GPU package whose CUDA or cuDNN libraries do not load prints a warning and gives a session on the CPU; a node without
a GPU kernel goes there as well. Both serve right answers at a tenth of the speed, so after each load we look where the
work went. What fits is `dovetail.rules.onnxruntime_gpu_fit`; running is the session's business.

Source: ONNX Runtime issues 23647, 17801 and 29669; seen with onnxruntime-gpu 1.31.1 on a machine without CUDA.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dovetail.engines.base import SessionOptions
from dovetail.errors import EngineError, UnsupportedError
from dovetail.rules.onnxruntime_gpu import CUDA_PROVIDER, TENSORRT_PROVIDER, options_by_provider

_CPU = "CPUExecutionProvider"
_CHAINS = {CUDA_PROVIDER: (CUDA_PROVIDER,), TENSORRT_PROVIDER: (TENSORRT_PROVIDER, CUDA_PROVIDER)}
"""Provider -> those that may take nodes, in order; TensorRT leaves to CUDA what it cannot take."""

HEAVY = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul", "Attention",
     "MultiHeadAttention", "GRU", "LSTM", "RNN", "Einsum"}
)  # fmt: skip
"""Operators that must not run on the CPU beside a GPU; shapes and indices may, the library puts them there on purpose.
Source: ONNX Runtime, fallback_cpu_capability.cc (GetCpuPreferredNodes)."""

_NAMED = 5
"""Nodes that a refusal names."""


def open_gpu_session(library: Any, model: Path, settings: Any, options: SessionOptions) -> Any:
    """A session whose work is on the GPU.

    Args:
        library: The module.
        model: The .onnx file.
        settings: The library's session options; entries are added.
        options: Details as `dovetail.rules.onnxruntime_gpu` names them.

    Raises:
        UnsupportedError: The contract names no provider that we know, or this package does not have it.
        EngineError: The session fell back to the CPU, as a whole or with heavy operators.
    """
    provider = str(options.details.get("execution_provider", ""))
    chain = _CHAINS.get(provider)
    if chain is None:
        raise UnsupportedError(f"execution provider {provider!r} is unknown; this version knows {', '.join(_CHAINS)}")
    _refuse_missing(library, provider)
    require_gpu = bool(options.details.get("require_gpu", False))
    if require_gpu:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    given = options_by_provider(options.details.get("provider_options", ()))
    providers: list[Any] = [(name, given.get(name, {})) for name in chain]
    if not require_gpu:  # the library calls it a conflict to name the CPU and to forbid it
        providers.append(_CPU)
    with _libraries_found(library):
        session = library.InferenceSession(str(model), settings, providers=providers, enable_fallback=0)
    _refuse_fallback(session, provider)
    _refuse_heavy_on_cpu(session, provider)
    return session


def placed_nodes(session: Any) -> dict[str, list[str]]:
    """Provider -> operators of the nodes that it runs, in graph order; empty where the library does not tell (< 1.24).

    Source: onnxruntime 1.24, InferenceSession.get_provider_graph_assignment_info.
    """
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    found: dict[str, list[str]] = {}
    for part in tell() if tell is not None else ():
        found.setdefault(str(part.ep_name), []).extend(str(node.op_type) for node in part.get_nodes())
    return found


def _refuse_missing(library: Any, provider: str) -> None:
    available = library.get_available_providers()
    if provider not in available:
        raise UnsupportedError(
            f"this onnxruntime {library.__version__} has no {provider}, only {', '.join(available)}:"
            " pip install onnxruntime-gpu in its place"
        )


@contextlib.contextmanager
def _libraries_found(library: Any) -> Iterator[None]:
    """Have CUDA's libraries found where pip puts them, as the package itself does not."""
    preload = getattr(library, "preload_dlls", None)  # since 1.21
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters of them becomes an error below
        if preload is not None:  # it prints what it misses, and that shows when the provider loads
            with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                preload()
        yield


def _refuse_fallback(session: Any, provider: str) -> None:
    taken = list(session.get_providers())
    if provider not in taken:
        raise EngineError(
            f"{provider} was asked for and onnxruntime fell back to {', '.join(taken)}: its CUDA, cuDNN or TensorRT"
            " libraries do not load here; `dovetail doctor` says which, and `dovetail why` what else fits"
        )


def _refuse_heavy_on_cpu(session: Any, provider: str) -> None:
    placed = placed_nodes(session)
    heavy = [operator for operator in placed.get(_CPU, ()) if operator in HEAVY]
    elsewhere = sum(len(operators) for name, operators in placed.items() if name != _CPU)
    if not heavy and (elsewhere or not placed):
        return
    on_cpu = len(placed.get(_CPU, ()))
    names = ", ".join(heavy[:_NAMED]) or "all of them"
    raise EngineError(
        f"{provider} took {elsewhere} of {elsewhere + on_cpu} nodes; on the CPU would run {names}"
        f"{' …' if len(heavy) > _NAMED else ''}: serve an artifact for device cpu, or one of another engine"
    )
