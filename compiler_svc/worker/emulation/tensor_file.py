# SPDX-License-Identifier: Apache-2.0
"""Inputs and outputs of several runs in one .npz file, between a build and the emulated process that runs them.

Nothing is pickled: texts (BYTES) are stored in their raw protocol form with their shape, everything else as it is, so
that a wrong datatype of an output is seen by the gate and not mended here.
`read_runs(write_runs(path, runs, specs), specs) == runs`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dovetail.errors import InvalidInputError
from dovetail.tensor import Array, TensorSpec, from_raw, to_raw
from dovetail.zip_damage import telling_damage

MAX_BYTES = 2 << 30
"""Refuse files that unpack to more: a hundred samples of a 4-megapixel image model in fp32 are about 1.5 GiB."""


def write_runs(path: Path, runs: Sequence[Mapping[str, Array]], specs: Sequence[TensorSpec]) -> Path:
    """Write the named tensors of all runs; one that a run lacks is left out. Blocks for the size of the tensors."""
    arrays: dict[str, Array] = {}
    shapes: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        for position, spec in enumerate(specs):
            array = run.get(spec.name)
            if array is None:
                continue
            name = f"{index}.{position}"
            if array.dtype == object:
                shapes[name] = list(array.shape)
                array = np.frombuffer(to_raw(array, "BYTES"), dtype=np.uint8)
            arrays[name] = array
    meta = json.dumps({"runs": len(runs), "texts": shapes}).encode()
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, meta=np.frombuffer(meta, dtype=np.uint8), **arrays)
    return path


def read_runs(path: Path, specs: Sequence[TensorSpec]) -> list[dict[str, Array]]:
    """Read what `write_runs` wrote.

    Raises:
        InvalidInputError: It is something else, or unpacks to more than MAX_BYTES.
    """
    try:
        with telling_damage(lambda why: InvalidInputError(f"file of runs is not readable: {why}")):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(item.file_size for item in archive.infolist())
            if unpacked > MAX_BYTES:
                raise InvalidInputError(f"runs unpack to {unpacked} bytes; at most {MAX_BYTES} are read")
            with np.load(path, allow_pickle=False) as stored:
                meta = json.loads(stored["meta"].tobytes())
                return [_read_run(stored, index, specs, meta["texts"]) for index in range(int(meta["runs"]))]
    except (OSError, KeyError, TypeError) as exc:  # what is in it is not what it should be
        raise InvalidInputError(f"file of runs is not readable: {type(exc).__name__}") from exc


def _read_run(
    stored: Mapping[str, Array], index: int, specs: Sequence[TensorSpec], texts: Mapping[str, Sequence[int]]
) -> dict[str, Array]:
    run: dict[str, Array] = {}
    for position, spec in enumerate(specs):
        name = f"{index}.{position}"
        if name in texts:
            run[spec.name] = from_raw(stored[name].tobytes(), "BYTES", texts[name], name=spec.name)
        elif name in stored:
            run[spec.name] = stored[name]
    return run
