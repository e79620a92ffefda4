# SPDX-License-Identifier: Apache-2.0
"""Tells what kind of file PyTorch wrote, by its structure alone: nothing is unpacked, unpickled or imported.

`.pt2` says little (compiled packages have the same suffix) and `.pt` says nothing, so names of files do not count. What
a program may hold in detail is `archive`'s business.

Source: PyTorch 2.13, torch/export/pt2_archive (constants and writer), torch/serialization.py (MAGIC_NUMBER),
    torch/csrc/jit/serialization/export_module.cpp (constants.pkl, code/); Python, pickletools (PROTO).
"""

from __future__ import annotations

import enum
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from dovetail.errors import InvalidInputError
from dovetail.zip_damage import telling_damage

MAX_MEMBERS = 50_000
"""Refuse archives with more; torch writes one member for each weight."""

_ZIP = b"PK\x03\x04"
_MAX_FORMAT_BYTES = 16


class FileKind(enum.Enum):
    """What a file is."""

    PROGRAM = "program"
    """Saved by torch.export.save."""

    COMPILED = "compiled"
    """An AOTInductor package: machine code for one kind of machine."""

    OLD_PROGRAM = "old program"
    """Saved by torch.export.save of an old torch, whose archive has another form."""

    TORCHSCRIPT = "torchscript"
    """Saved by torch.jit.save."""

    CHECKPOINT = "checkpoint"
    """Saved by torch.save: a pickle, in a zip or bare."""

    OTHER = "other"
    """None of these."""


_ADVICE = {
    FileKind.COMPILED: "an AOTInductor package, machine code for one kind of machine; push the program that it was"
    " compiled from (torch.export.save), and every machine gets its own",
    FileKind.OLD_PROGRAM: "a program saved by an old torch, whose archive holds pickles; export the module with"
    " dovetail.export(module, example_inputs), or save the program again with torch 2.13",
    FileKind.TORCHSCRIPT: "a TorchScript archive, whose pickles run code when they are loaded, so it is never opened;"
    " export the module with dovetail.export(module, example_inputs) or torch.export.save(torch.export.export(…))",
    FileKind.CHECKPOINT: "a pickle (torch.save), which runs code when it is loaded and holds no graph, so it is never"
    " opened; load it into its module where you trust it, and export that with dovetail.export(module, example_inputs)"
    " or torch.export.save(torch.export.export(…))",
}


def kind_of(path: Path) -> FileKind:
    """What the file is. Blocks for the archive's directory only.

    Raises:
        InvalidInputError: A zip that cannot be read.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(len(_ZIP))
    if head != _ZIP:
        is_pickle = len(head) > 1 and head[:1] == b"\x80" and 2 <= head[1] <= 5
        return FileKind.CHECKPOINT if is_pickle else FileKind.OTHER
    with telling_damage(_unreadable), zipfile.ZipFile(path) as archive:
        return _kind_of_zip(archive)


def _unreadable(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"this begins as a zip archive, like PyTorch's files, and cannot be read: {why}; truncated?"
    )


def refuse_unopenable(kind: FileKind) -> None:
    """Refuse the kinds of PyTorch files that are never opened.

    Raises:
        InvalidInputError: It is one; the text says what to do instead.
    """
    if kind in _ADVICE:
        raise InvalidInputError(f"this is {_ADVICE[kind]}")


def _kind_of_zip(archive: zipfile.ZipFile) -> FileKind:
    names = [PurePosixPath(name).parts for name in archive.namelist()[:MAX_MEMBERS]]
    inner = {"/".join(parts[1:]) for parts in names if len(parts) > 1}
    if _has(inner, "archive_format") and _format(archive) == b"pt2":
        programs = any(name.startswith("models/") for name in inner)
        return FileKind.PROGRAM if programs or not _compiled(inner) else FileKind.COMPILED
    if _compiled(inner):  # an old package, without a format
        return FileKind.COMPILED
    if {"serialized_exported_program.json", "version"} & {parts[0] for parts in names if parts}:
        return FileKind.OLD_PROGRAM
    if _has(inner, "constants.pkl") or any(name.startswith("code/") for name in inner):
        return FileKind.TORCHSCRIPT
    return FileKind.CHECKPOINT if _has(inner, "data.pkl") else FileKind.OTHER


def _has(inner: Iterable[str], name: str) -> bool:
    return name in inner


def _compiled(inner: Iterable[str]) -> bool:
    return any(name.startswith("data/aotinductor/") for name in inner)


def _format(archive: zipfile.ZipFile) -> bytes:
    member = next(item for item in archive.infolist() if item.filename.partition("/")[2] == "archive_format")
    with archive.open(member) as file:
        return file.read(_MAX_FORMAT_BYTES)
