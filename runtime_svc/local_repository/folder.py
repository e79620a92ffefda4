# SPDX-License-Identifier: Apache-2.0
"""Reads a model repository's folder: which models and versions it has, and whose files they are.

    <folder>/<model>/config.json              in the form of Triton's ModelConfig
    <folder>/<model>/<version>/model.py       or model.onnx; a pipeline has none
    <folder>/<model>/initial_state/<file>     first values of sequences' states

Whoever can write there decides what this process runs, so every file must be the process's user's own or root's and
not writable by others, and no link leads elsewhere. Blocks: call it off the event loop.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dovetail.digest import NAME_PATTERN
from dovetail.errors import InvalidInputError, NotFoundError, UntrustedError
from runtime_svc.configuration.document import MAX_CONFIG_BYTES
from runtime_svc.configuration.reading import ModelDeclaration, read_model_config

_log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
MAX_FILES = 10_000
MAX_STATE_BYTES = 1 << 30
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model as its folder has it.

    Attributes:
        name: Of the model.
        folder: Where it is.
        declaration: What its configuration, or the one that replaces it, says.
        versions: Version -> folder with its files.
    """

    name: str
    folder: Path
    declaration: ModelDeclaration
    versions: Mapping[int, Path]


def model_names(root: Path) -> list[str]:
    """Names of the models in a repository's folder, sorted; what cannot be a model's name is passed over with a log."""
    names = []
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        if path.name.startswith(".") or not path.is_dir():
            continue
        if NAME_PATTERN.match(path.name):
            names.append(path.name)
        else:
            _log.warning("local_models.passed_over folder=%r meaning=%r", path.name, "not a name of a model")
    return names


def is_model(root: Path, name: str) -> bool:
    """True if a repository's folder has a model of that name."""
    return NAME_PATTERN.match(name) is not None and (root / name).is_dir()


def read_model(folder: Path, name: str, config: str = "") -> LocalModel:
    """Read a model's folder.

    Args:
        folder: Of the model.
        name: Of the model.
        config: Configuration that replaces its own; "" for its own.

    Raises:
        NotFoundError: There is no such folder.
        UntrustedError: Others could have changed something in it.
        InvalidInputError: There is no configuration, or something is wrong with it.
    """
    if not folder.is_dir():
        raise NotFoundError(f"there is no local model '{name}'")
    check_own(folder, name)
    text = config or _own_config(folder, name)

    def read_file(path: str) -> bytes:
        return _file_below(folder, path, name)

    declaration = read_model_config(text, name=name, read_file=read_file)
    versions = {int(path.name): path for path in folder.iterdir() if _is_version(path)}
    if declaration.serving.pipeline is not None:
        versions = versions or {1: folder}
    return LocalModel(name, folder, declaration, versions)


def known_versions(folder: Path) -> list[int]:
    """Numbers of a model's version folders, rising."""
    return sorted(int(path.name) for path in folder.iterdir() if _is_version(path)) if folder.is_dir() else []


def check_own(folder: Path, name: str) -> None:
    """Make sure that nobody else can have changed anything in a model's folder, or the folder it lies in.

    Raises:
        UntrustedError: Somebody could.
        InvalidInputError: It has too many files to be a model.
    """
    for count, path in enumerate(_everything(folder)):
        if count > MAX_FILES:
            raise InvalidInputError(f"the folder of model '{name}' has more than {MAX_FILES} files")
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise UntrustedError(f"model '{name}': {path.name!r} is a link; put the file itself there")
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & _OTHERS_WRITE:
            raise UntrustedError(
                f"model '{name}': others than this node's user may write {path.name!r}; give it to that user and take"
                " the right from group and others (chmod go-w)"
            )


def _everything(folder: Path) -> Iterator[Path]:
    yield folder.parent
    yield folder
    yield from folder.rglob("*")


def _own_config(folder: Path, name: str) -> str:
    try:
        with (folder / CONFIG_FILE).open("rb") as file:
            return file.read(MAX_CONFIG_BYTES + 1).decode("utf-8")
    except FileNotFoundError:
        raise InvalidInputError(
            f"model '{name}' has no {CONFIG_FILE}: write one in the form of Triton's ModelConfig, as JSON"
        ) from None
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidInputError(f"{CONFIG_FILE} of model '{name}' cannot be read: {type(exc).__name__}") from exc


def _file_below(folder: Path, path: str, name: str) -> bytes:
    wanted = folder / path
    if ".." in Path(path).parts or Path(path).is_absolute() or not wanted.is_file():
        raise InvalidInputError(f"model '{name}' has no file {path[:200]!r}")
    if wanted.stat().st_size > MAX_STATE_BYTES:
        raise InvalidInputError(f"file {path[:200]!r} of model '{name}' is too large for a first state")
    return wanted.read_bytes()


def _is_version(path: Path) -> bool:
    name = path.name
    return name.isascii() and name.isdigit() and len(name) < 19 and name[0] != "0" and path.is_dir()
