# SPDX-License-Identifier: Apache-2.0
"""What an AOTInductor package (`.pt2`) says of itself, read from its zip without torch and without unpacking it.

A package holds, below `<any name>/data/aotinductor/<model>/`, one compiled library (`….wrapper.so`), its generated
source, and beside each source a `…_metadata.json` in which torch writes what it compiled for (`AOTI_*`) and a user may
add texts: ours are the torch that built it and the signature, because a package knows no names of tensors.

Nothing of this is believed by torch, which only warns and then runs the code; so it is read here, before torch sees the
file, in one place for the build (which fills the contract from it) and the engine (which refuses by it). The file may
come from anywhere: sizes and counts are bounded, members must be stored, plain and unique.

Source: PyTorch 2.13, torch/_inductor/codecache.py (get_device_information, `_metadata.json`),
    torch/export/pt2_archive/constants.py, torch/csrc/inductor/aoti_package/model_package_loader.cpp.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from dovetail.errors import InvalidInputError
from dovetail.tensor import TensorSpec
from dovetail.zip_damage import telling_damage

MODEL = "model"
"""Name of the one model in a package of ours; torch's own default."""

FILE = "model.pt2"
"""Name of the package in an artifact."""

TORCH = "DOVETAIL_TORCH"
"""Metadata: version of the torch that compiled it, with its build tag."""

MARCH = "DOVETAIL_MARCH"
"""Metadata: what the C++ compiler was told by -march; "native" is the builder's own CPU."""

SIGNATURE = "DOVETAIL_SIGNATURE"
"""Metadata: `Signature.to_text()`."""

MAX_MEMBERS = 4096
"""Refuse packages with more; one has about ten, and two for each CUDA kernel."""

MAX_METADATA_BYTES = 1 << 20
"""Refuse larger metadata; the signature of a model with a thousand tensors takes some 100 KiB."""

_FOLDER = ("data", "aotinductor")


@dataclass(frozen=True, slots=True)
class Signature:
    """Names, types and shapes in the order in which the compiled code takes and gives tensors.

    Attributes:
        inputs: What it takes.
        outputs: What it gives.
        symbols: For each input and axis the name of its free size, "" where it is fixed. Equal names must have equal
            sizes: the code reads one of them and believes it for all.
        ranges: Name of a free size -> least and largest size that it was compiled for; none for -1.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: tuple[tuple[str, ...], ...]
    ranges: Mapping[str, tuple[int, int]]

    def to_text(self) -> str:
        """JSON text; `Signature.from_text(s.to_text()) == s`."""
        document = {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "symbols": [list(names) for names in self.symbols],
            "ranges": {name: list(bounds) for name, bounds in sorted(self.ranges.items())},
        }
        return json.dumps(document, separators=(",", ":"))

    @staticmethod
    def from_text(text: str) -> Signature:
        """Read the JSON text.

        Raises:
            InvalidInputError: It is not one.
        """
        try:
            document = json.loads(text)
            signature = Signature(
                inputs=tuple(TensorSpec.from_json(item) for item in document["inputs"]),
                outputs=tuple(TensorSpec.from_json(item) for item in document["outputs"]),
                symbols=tuple(tuple(str(name) for name in names) for names in document["symbols"]),
                ranges={str(name): (int(low), int(high)) for name, (low, high) in document["ranges"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise InvalidInputError(f"the signature in an AOTInductor package is not readable: {exc!r}") from exc
        if [len(spec.shape) for spec in signature.inputs] != [len(names) for names in signature.symbols]:
            raise InvalidInputError("the signature in an AOTInductor package does not name each axis of its inputs")
        return signature

    def misfit(self, shapes: Iterable[tuple[int, ...]]) -> str:
        """Why arrays of these shapes, one for each input, cannot be given to the compiled code; "" if they can.

        The code does not look: it would read beyond the end of an array that is too small.
        """
        sizes: dict[str, tuple[int, str]] = {}
        for spec, names, shape in zip(self.inputs, self.symbols, shapes, strict=True):
            if not spec.accepts(shape):
                return f"input {spec.name!r} has shape {list(shape)}, the package takes {list(spec.shape)}"
            for name, size in zip(names, shape, strict=True):
                if not name:
                    continue
                low, high = self.ranges.get(name, (0, -1))
                if size < low or 0 <= high < size:
                    most = f"to {high}" if high >= 0 else "and more"
                    return f"input {spec.name!r} has shape {list(shape)}; a free size goes from {low} {most}"
                first, where = sizes.setdefault(name, (size, spec.name))
                if size != first:
                    return f"inputs {where!r} and {spec.name!r} share a free size, and bring {first} and {size}"
        return ""


@dataclass(frozen=True, slots=True)
class Package:
    """What was found.

    Attributes:
        metadata: All metadata, torch's own and ours.
        library: Member with the compiled code.
        needs_python: True if it calls operators for which torch has no C function, so that torch's own loader has to
            find them.
    """

    metadata: Mapping[str, str]
    library: str
    needs_python: bool

    def text(self, name: str) -> str:
        """One entry of the metadata; "" if it is not there."""
        return self.metadata.get(name, "")


def read_package(file: BinaryIO) -> Package:
    """Read a package.

    Args:
        file: The package, opened for reading; it may be anything.

    Raises:
        InvalidInputError: It is no package with exactly one compiled model, or not a sound zip.
    """
    with telling_damage(_unreadable):
        try:
            with zipfile.ZipFile(file) as archive:
                members = _members(archive)
                folder = _model_folder(members)
                inside = {name: info for name, info in members.items() if name.parent == folder}
                metadata = _metadata(archive, inside)
        except OSError as exc:
            raise _unreadable(str(exc)) from exc
    libraries = [name for name in inside if name.suffix == ".so"]
    if len(libraries) != 1:
        raise InvalidInputError(f"an AOTInductor package has one compiled library, this one has {len(libraries)}")
    nodes = inside.get(libraries[0].with_suffix(".json"))
    return Package(metadata, inside[libraries[0]].filename, nodes is not None)


def _unreadable(why: str) -> InvalidInputError:
    return InvalidInputError(f"not a readable AOTInductor package: {why}")


def _members(archive: zipfile.ZipFile) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Members by their place below the package's own top folder, which has any name."""
    found: dict[PurePosixPath, zipfile.ZipInfo] = {}
    if len(archive.infolist()) > MAX_MEMBERS:
        raise InvalidInputError(f"an AOTInductor package has at most {MAX_MEMBERS} members")
    for info in archive.infolist():
        path = PurePosixPath(info.filename)
        plain = not path.is_absolute() and ".." not in path.parts and "\\" not in info.filename
        stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        if not plain or not stored or info.flag_bits & 1 or len(path.parts) < 2:
            raise InvalidInputError(f"member {info.filename[:80]!r} of an AOTInductor package is not plain and stored")
        place = PurePosixPath(*path.parts[1:])
        if place in found:
            raise InvalidInputError(f"member {info.filename[:80]!r} is twice in an AOTInductor package")
        found[place] = info
    return found


def _model_folder(members: Mapping[PurePosixPath, zipfile.ZipInfo]) -> PurePosixPath:
    folders = {name.parent for name in members if name.parts[:2] == _FOLDER and len(name.parts) > 3}
    models = {folder.parts[2] for folder in folders}
    if models != {MODEL}:
        raise InvalidInputError(
            f"an AOTInductor package has one model named {MODEL!r}, this file has {sorted(models)[:5] or 'none'}"
        )
    return PurePosixPath(*_FOLDER, MODEL)


def _metadata(archive: zipfile.ZipFile, inside: Mapping[PurePosixPath, zipfile.ZipInfo]) -> dict[str, str]:
    """All metadata files, which must not contradict each other."""
    merged: dict[str, str] = {}
    for name, info in inside.items():
        if not name.name.endswith("_metadata.json"):
            continue
        if info.file_size > MAX_METADATA_BYTES:
            raise InvalidInputError(f"the metadata of an AOTInductor package has {info.file_size} bytes")
        for key, value in _object(archive.read(info)).items():
            if merged.setdefault(str(key), str(value)) != str(value):
                raise InvalidInputError(f"the metadata of an AOTInductor package says {str(key)[:40]} in two ways")
    if not merged:
        raise InvalidInputError("an AOTInductor package without metadata: nobody can say what it was compiled for")
    return merged


def _object(data: bytes) -> Mapping[str, Any]:
    document = json.loads(data)
    if not isinstance(document, dict):
        raise InvalidInputError("the metadata of an AOTInductor package is not a JSON object")
    return document
