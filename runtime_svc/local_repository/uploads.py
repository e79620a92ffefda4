# SPDX-License-Identifier: Apache-2.0
"""Files that callers load models with: written to a folder of the node's own, and gone with the model.

Triton's load parameters `file:<version>/<name>`; they replace all versions of a model. Only a node that takes artifacts
whoever made them lets callers do this, because the files are code.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from dovetail.errors import InvalidInputError
from dovetail.store.durable import PRIVATE_FOLDER_MODE, disk_errors, make_folder
from runtime_svc.local_repository.folder import CONFIG_FILE

MAX_FILES = 1024
MAX_DEPTH = 4
_MODE = 0o600
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class Uploads:
    """Folders with files that callers sent. Blocks: call it off the event loop.

    Args:
        folder: For all of them; whatever a former process left there is removed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)

    def write(self, name: str, files: Mapping[str, bytes]) -> Path:
        """A new model folder with these files.

        Args:
            name: Of the model.
            files: `<version>/<file>` -> content, and its configuration.

        Raises:
            InvalidInputError: A path is not of that form, or there are too many.
            OverLimitError: The disk is full.
        """
        paths = [Path(CONFIG_FILE) if path == CONFIG_FILE else _checked(path) for path in files]
        if len(paths) > MAX_FILES:
            raise InvalidInputError(f"{len(paths)} files for model '{name}' are too many; the limit is {MAX_FILES}")
        target = self._folder / f"{name}.{secrets.token_hex(8)}" / name
        with disk_errors("write a model's files"):
            make_folder(self._folder, mode=PRIVATE_FOLDER_MODE)
            try:
                for path, content in zip(paths, files.values(), strict=True):
                    file = target / path
                    file.parent.mkdir(parents=True, mode=PRIVATE_FOLDER_MODE, exist_ok=True)
                    file.touch(mode=_MODE, exist_ok=False)
                    file.write_bytes(content)
            except FileExistsError:
                self.remove(target)
                raise InvalidInputError(f"the files for model '{name}' are in each other's way") from None
            for folder in (target.parent, target, *target.rglob("*/")):
                folder.chmod(PRIVATE_FOLDER_MODE)
        return target

    def remove(self, target: Path) -> bool:
        """Remove a folder that `write` made; False for any other, which is left alone."""
        ours = self._folder in target.parents
        if ours:
            shutil.rmtree(target.parent, ignore_errors=True)
        return ours


def _checked(path: str) -> Path:
    parts = path.split("/")
    fine = 2 <= len(parts) <= MAX_DEPTH and all(_PART.fullmatch(part) for part in parts)
    if not fine or not (parts[0].isdigit() and parts[0][0] != "0" and len(parts[0]) < 19):
        raise InvalidInputError(
            f"load parameter 'file:{path[:200]}' is not of the form 'file:<version>/<name>', such as 'file:1/model.py'"
        )
    return Path(*parts)
