# SPDX-License-Identifier: Apache-2.0
"""Checks the zip of an exported program (.pt2) member by member, and rewrites it without what could be unpickled.

No torch is needed here, and nothing is loaded. What torch.export.load does with such an archive (torch 2.13):

* weights and constants are raw bytes beside a JSON description, unless that says `use_pickle`: those, and the members
  `custom_obj_*`, `opaque_obj_*` and `<weights|constants>/model.pt`, are unpickled without any restriction. A program
  that has one is refused.
* the sample inputs (`data/sample_inputs/model.pt`) are always a pickle. They are loaded with restrictions first and, if
  that fails, without: a crafted file runs code. They are never kept: `rewrite` leaves an empty member in their place,
  which torch reads as "none".
* what remains is JSON, but still not harmless: parts of it are evaluated as Python or imported by name. `graph_check`
  refuses what it knows of that and guards are dropped; but a rewritten program, too, is opened in a confined child
  process only.

Source: PyTorch 2.13.0, torch/export/pt2_archive/_package.py (_load_state_dict, _load_constants,
    _load_exported_programs), torch/_export/serde/serialize.py (deserialize_torch_artifact, _parse_sym_expr,
    deserialize_operator); APPNOTE.TXT 6.3.10.
"""

from __future__ import annotations

import json
import re
import shutil
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dovetail.errors import InvalidInputError, OverLimitError, UnsupportedError
from dovetail.program.graph_check import GUARDS, check_graph
from dovetail.program.kinds import MAX_MEMBERS, FileKind, kind_of, refuse_unopenable
from dovetail.zip_damage import telling_damage

SAMPLE_INPUTS = "data/sample_inputs/model.pt"
MAX_GRAPH_BYTES = 256 << 20
"""Refuse larger descriptions of the graph; 100 000 nodes take some 100 MiB."""

MAX_CONFIG_BYTES = 64 << 20
_GRAPH = "models/model.json"
_CONFIGS = {
    "data/weights/model_weights_config.json": ("data/weights/", "weight_"),
    "data/constants/model_constants_config.json": ("data/constants/", "tensor_"),
}
_REQUIRED = ("archive_format", "archive_version", _GRAPH, *_CONFIGS)
_MARKS = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
_OPTIONAL = ("byteorder", ".data/version", ".data/serialization_id", ".data/alignment", SAMPLE_INPUTS)
_RAW = re.compile(r"data/weights/weight_\d{1,9}|data/constants/tensor_\d{1,9}")
_PICKLES = re.compile(r"data/constants/(custom|opaque)_obj_.*|data/(weights|constants)/[^/]*\.pt")
_LEFT_OUT = ("extra/", "data/sample_inputs/", ".data/serialization_id")
_RELEASE = re.compile(r"\d{1,4}\.\d{1,4}(\.\d{1,4})?")
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class ProgramFacts:
    """What an archive says of itself.

    Attributes:
        release: torch release that exported it, without its build tag ("2.13.0").
        left_out: What `rewrite` leaves out, for people.
    """

    release: str
    left_out: tuple[str, ...] = ()


def check_program(path: Path, *, max_bytes: int) -> ProgramFacts:
    """Hold an archive against what torch.export.save writes. Blocks; reads the JSON members whole.

    Args:
        path: The file.
        max_bytes: Of all members together.

    Raises:
        InvalidInputError: No program, or members that are none of a program's, leave the archive, or are pickles.
        OverLimitError: Too many members or bytes.
        UnsupportedError: A form of the archive that is not known here.
    """
    kind = kind_of(path)
    refuse_unopenable(kind)
    if kind is not FileKind.PROGRAM:
        raise InvalidInputError(
            "this is no program: expected a .pt2 file that torch.export.save or dovetail.export wrote"
        )
    with _opened(path, max_bytes) as (archive, members):
        _check_names(members)
        _check_marks(archive, members)
        for config, (folder, prefix) in _CONFIGS.items():
            _check_config(_json(archive, members[config], MAX_CONFIG_BYTES), folder, prefix, members)
        graph = _json(archive, members[_GRAPH], MAX_GRAPH_BYTES)
        check_graph(graph)
        return ProgramFacts(_release(graph), _left_out(members))


def rewrite(path: Path, into: Path, *, max_bytes: int) -> ProgramFacts:
    """Write the archive anew: known members only, no sample inputs, no times. Equal programs give equal bytes.

    Raises:
        InvalidInputError, OverLimitError, UnsupportedError: As `check_program`.
    """
    facts = check_program(path, max_bytes=max_bytes)
    with (
        _opened(path, max_bytes) as (archive, members),
        zipfile.ZipFile(into, "w", zipfile.ZIP_STORED) as result,
    ):
        for name in sorted({*members, SAMPLE_INPUTS}):
            kept = not name.startswith(_LEFT_OUT)
            if kept or name == SAMPLE_INPUTS:
                info = zipfile.ZipInfo(f"program/{name}", _FIXED_TIME)
                with result.open(info, "w", force_zip64=kept and members[name].file_size >= 1 << 31) as target:
                    if name == _GRAPH:
                        target.write(_without_guards(archive, members[name]))
                    elif kept:
                        with archive.open(members[name]) as source:
                            shutil.copyfileobj(source, target, 1 << 20)
    return facts


def _without_guards(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The graph's JSON, the Python that checks inputs left out; the declared ranges stay."""
    data = _bytes(archive, member, MAX_GRAPH_BYTES)
    document = json.loads(data)
    return json.dumps({**document, GUARDS: []}).encode() if document.get(GUARDS) else data


@contextmanager
def _opened(path: Path, max_bytes: int) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """The archive, and its members by their names without the root folder; names and sizes are checked."""
    with telling_damage(_damaged), zipfile.ZipFile(path) as archive:
        yield archive, _members(archive.infolist(), path.stat().st_size, max_bytes)


def _damaged(why: str) -> InvalidInputError:
    return InvalidInputError(f"the program's archive is damaged: {why}")


def _members(items: Iterable[zipfile.ZipInfo], size: int, max_bytes: int) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    roots: set[str] = set()
    total = 0
    for item in items:
        name = item.orig_filename
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or len(name) > 512:
            raise InvalidInputError(f"program: member {name[:200]!r} leaves the archive; it is refused as a whole")
        if item.flag_bits & 1 or stat.S_IFMT(item.external_attr >> 16) not in (0, stat.S_IFREG):
            raise InvalidInputError(f"program: member {name[:200]!r} is encrypted or not a plain file")
        if item.compress_type != zipfile.ZIP_STORED or item.compress_size != item.file_size:
            raise InvalidInputError(f"program: member {name[:200]!r} is compressed, which torch never does")
        root, _, inner = name.partition("/")
        if inner in found:
            raise InvalidInputError(f"program: two members are called {inner[:200]!r}")
        roots.add(root)
        found[inner] = item
        total += item.file_size
        if len(found) > MAX_MEMBERS or total > max_bytes:
            raise OverLimitError(
                f"the program has more than {MAX_MEMBERS} members or {max_bytes} bytes, the limits of this service"
            )
    if len(roots) != 1 or total > size:  # members that overlap hold more than the file
        raise InvalidInputError("program: its members do not lie in one folder, or overlap; it is damaged or crafted")
    return found


def _check_names(members: Mapping[str, zipfile.ZipInfo]) -> None:
    for name in _REQUIRED:
        if name not in members:
            other = [item for item in members if item.startswith("models/")]
            hint = f"; it holds {', '.join(sorted(other)[:4])}" if other and name == _GRAPH else ""
            raise InvalidInputError(f"program: member {name!r} is missing{hint}; save one program by torch.export.save")
    for name in members:
        if _PICKLES.fullmatch(name):
            raise InvalidInputError(
                f"program: member {name[:200]!r} is a pickle, which runs code when it is loaded; programs with custom"
                " objects or saved by an old torch are not taken. Export the module with dovetail.export"
            )
        if (
            name not in _REQUIRED
            and name not in _OPTIONAL
            and not _RAW.fullmatch(name)
            and not name.startswith("extra/")
        ):
            raise InvalidInputError(f"program: member {name[:200]!r} is none of an exported program's")


def _check_marks(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> None:
    for name, wanted in _MARKS.items():
        found = _bytes(archive, members[name], 64) if name in members else wanted
        if found != wanted:
            raise UnsupportedError(
                f"program: {name} is {found[:20]!r}, this version reads {wanted!r}; save it with torch 2.13"
            )


def _check_config(document: Any, folder: str, prefix: str, members: Mapping[str, zipfile.ZipInfo]) -> None:
    """Every tensor must be raw bytes in a member of its own kind."""
    entries = document.get("config") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise InvalidInputError(f"program: the description of {folder} is not readable")
    for tensor, entry in entries.items():
        file = entry.get("path_name") if isinstance(entry, dict) else None
        if not isinstance(file, str) or entry.get("use_pickle") is not False:
            raise InvalidInputError(
                f"program: {tensor[:200]!r} is kept as a pickle (a tensor subclass, such as a quantised weight), which"
                " runs code when it is loaded; export the module with plain tensors"
            )
        if not file.startswith(prefix) or folder + file not in members:
            raise InvalidInputError(
                f"program: {tensor[:200]!r} is said to be in {file[:80]!r}, which is no such member"
            )


def _release(graph: Any) -> str:
    text = graph.get("torch_version") if isinstance(graph, dict) else None
    found = _RELEASE.match(text) if isinstance(text, str) else None
    if found is None:
        raise InvalidInputError("program: it does not say which torch exported it; save it with torch.export.save")
    return found[0]


def _left_out(members: Mapping[str, zipfile.ZipInfo]) -> tuple[str, ...]:
    sampled = SAMPLE_INPUTS in members and members[SAMPLE_INPUTS].file_size > 0
    extra = sum(name.startswith("extra/") for name in members)
    return (
        *(("sample inputs (a pickle)",) if sampled else ()),
        *((f"{extra} extra {'file' if extra == 1 else 'files'}",) if extra else ()),
    )


def _json(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> Any:
    if member.file_size > limit:
        raise OverLimitError(f"program: {member.filename[:80]!r} has {member.file_size} bytes, the limit is {limit}")
    try:
        return json.loads(_bytes(archive, member, limit))
    except (UnicodeDecodeError, ValueError, RecursionError) as exc:
        raise InvalidInputError(f"program: {member.filename[:80]!r} is not readable as JSON") from exc


def _bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    with archive.open(member) as file:
        return file.read(limit)
