# SPDX-License-Identifier: Apache-2.0
"""Configurations that callers loaded models with, kept on disk until the models are unloaded.

What lives here is keeping them; what they say, and whether a model can be served so, is the business of
`configuration.override`.
"""

from __future__ import annotations

import logging
from pathlib import Path

from dovetail.digest import check_name
from dovetail.errors import OverLimitError, UnavailableError
from dovetail.store.durable import PRIVATE_FOLDER_MODE, disk_errors, make_folder, write_durable

_log = logging.getLogger(__name__)
_SUFFIX = ".json"
_MODE = 0o600


class ConfigOverrides:
    """Model -> configuration, JSON in Triton's form. Belongs to the event loop; `put` and `drop` write a small file.

    Args:
        folder: Of the files; nobody else may write there. None keeps them in memory only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._texts: dict[str, str] = {}
        for path in sorted(folder.glob(f"*{_SUFFIX}")) if folder is not None else ():
            try:
                self._texts[path.name.removesuffix(_SUFFIX)] = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as exc:
                _log.error("overrides.unreadable file=%s reason=%s", path.name, type(exc).__name__)

    def text(self, model: str) -> str:
        """The configuration that it is to be served with; "" for its own."""
        return self._texts.get(model, "")

    def put(self, model: str, text: str) -> None:
        """Serve it so from now on. A disk that cannot be written costs its being known after a restart, and no more."""
        check_name(model, "model name")
        self._texts[model] = text
        if self._folder is None:
            return
        try:
            make_folder(self._folder, mode=PRIVATE_FOLDER_MODE)
            path = self._folder / f"{model}{_SUFFIX}"
            write_durable(path, text.encode(), what="a model's configuration", mode=_MODE)
        except (OverLimitError, UnavailableError) as exc:
            _log.error("overrides.write_failed model=%s reason=%s", model, exc)

    def drop(self, model: str) -> None:
        """Serve it as it is itself from now on; harmless if it was."""
        if self._texts.pop(model, None) is None or self._folder is None:
            return
        try:
            with disk_errors("remove a model's configuration"):
                (self._folder / f"{model}{_SUFFIX}").unlink(missing_ok=True)
        except (OverLimitError, UnavailableError) as exc:
            _log.error("overrides.write_failed model=%s reason=%s", model, exc)
