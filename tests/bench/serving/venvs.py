# SPDX-License-Identifier: Apache-2.0
"""The venvs of what is measured beside us: each its own, made once, kept outside of the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

INSTALL_TIMEOUT_S = 1800.0


class InstallError(Exception):
    """A venv could not be made; the text says why."""


def cache_folder() -> Path:
    """Where they are: DOVETAIL_BENCH_CACHE, else a folder in the user's cache."""
    given = os.environ.get("DOVETAIL_BENCH_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "dovetail-bench"


def venv_with(name: str, requirements: Sequence[str], options: Sequence[str] = ()) -> Path:
    """Folder of a venv that has exactly these requirements installed; makes it if needed.

    Raises:
        InstallError: It could not be made.
    """
    folder = cache_folder() / name
    marker, wanted = folder / "installed.txt", "\n".join((*requirements, *options))
    if marker.exists() and marker.read_text() == wanted:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *options, *requirements])
    marker.write_text(wanted)
    return folder


def _run(argv: list[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as exc:
        raise InstallError(f"{' '.join(argv[:4])} … took longer than {INSTALL_TIMEOUT_S:.0f} s") from exc
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise InstallError(f"{' '.join(argv)} failed: {lines[-1][:300]}")
