# SPDX-License-Identifier: Apache-2.0
"""Has torch compile a program into a package, with every setting that matters written out.

Settings that are a choice (inductor's names, torch 2.13):

* `cpp.march`, `cpp.simdlen`: from the recipe. Without them the code is for the builder's own CPU.
* `cpp.dynamic_threads`: else the builder's number of threads is written into every parallel loop.
* `aot_inductor.precompile_headers` off: a precompiled header pays over many builds, and each of ours starts with an
  empty cache (a small net on two cores that others used: 20 s instead of 27 s).
* `aot_inductor.enable_line_tables` off: they are two thirds of a small package (14 s instead of 20 s), and name folders
  of the builder.
* `compile_threads` 1: no pool of helper processes for a single C++ file; CUDA kernels are compiled by as many as the
  build may use.
* fallbacks to random numbers, autotuning and CUDA graphs stay as torch has them: off.

A package is compiled by the process that calls this, in its cache folder (`torch_program.work_in`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dovetail.contract import Contract
from dovetail.errors import BuildFailedError, UnsupportedError
from dovetail.program.onnx_form import quiet
from dovetail.recipe import Recipe
from dovetail.rules.aotinductor_package import MARCH, SIGNATURE, TORCH, Signature
from dovetail.rules.aotinductor_recipes import NATIVE


def compile_package(
    program: Any, signature: Signature, package: Path, *, recipe: Recipe, contract: Contract, threads: int
) -> None:
    """Compile into the file `package`. Blocks for seconds to minutes.

    Args:
        program: torch.export.ExportedProgram.
        signature: Written into the package.
        package: File to write; its name ends in ".pt2".
        recipe: Says how.
        contract: Says for which torch.
        threads: Compilers at once, for CUDA.

    Raises:
        UnsupportedError: It is for a GPU and there is none.
        BuildFailedError: This torch is not the one that was planned with.
        Exception: Whatever torch raises; the caller translates it.
    """
    import torch
    from torch._inductor import aoti_compile_and_package

    planned, here = contract.text("torch"), str(torch.__version__)
    if planned and planned.partition("+")[0] != here.partition("+")[0]:
        raise BuildFailedError(f"the build was planned with torch {planned}, this worker's child has {here}")
    if recipe.device == "cuda":
        program = _on_gpu(program)
    metadata = {TORCH: planned or here, MARCH: str(recipe.options["march"]), SIGNATURE: signature.to_text()}
    with quiet(), _capability(recipe), _tf32(allowed=bool(recipe.options.get("tf32", False))), torch.no_grad():
        aoti_compile_and_package(
            program, package_path=str(package), inductor_configs=_settings(recipe, metadata, threads)
        )


def _settings(recipe: Recipe, metadata: Mapping[str, str], threads: int) -> dict[str, Any]:
    march, simdlen = str(recipe.options["march"]), int(recipe.options.get("simdlen", 0))
    settings: dict[str, Any] = {
        "cpp.march": None if march == NATIVE else march,  # None is torch's own word for -march=native
        "cpp.simdlen": simdlen or None,
        "cpp.dynamic_threads": True,
        "compile_threads": threads if recipe.device == "cuda" else 1,
        "aot_inductor.precompile_headers": False,
        "aot_inductor.enable_line_tables": False,
        "aot_inductor.debug_compile": False,
        "aot_inductor.package_constants_in_so": True,
        "aot_inductor.metadata": dict(metadata),
    }
    if recipe.device == "cuda":
        settings["aot_inductor.emit_multi_arch_kernel"] = bool(recipe.options.get("multi_arch_kernel", False))
    return settings


def _on_gpu(program: Any) -> Any:
    import torch
    from torch.export.passes import move_to_device_pass

    if not torch.cuda.is_available():
        raise UnsupportedError(
            "a CUDA package is compiled on the GPU that it is for, and torch finds none here: order it where a worker"
            " has one, or use aoti-cpu"
        )
    return move_to_device_pass(program, "cuda")


@contextmanager
def _capability(recipe: Recipe) -> Iterator[None]:
    """Take ATEN_CPU_CAPABILITY out of the way: it would override what the recipe says."""
    known = os.environ.pop("ATEN_CPU_CAPABILITY", None)
    try:
        yield
    finally:
        if known is not None:
            os.environ["ATEN_CPU_CAPABILITY"] = known


@contextmanager
def _tf32(*, allowed: bool) -> Iterator[None]:
    """The precision of fp32 products while kernels are generated; the engine sets the same before it runs them."""
    import torch

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
