# SPDX-License-Identifier: Apache-2.0
"""Loads TensorRT plugins for a build: native code, so only what the worker's operator allows, by its digest.

A recipe names plugins by digest; the worker's setting DOVETAIL_TENSORRT_PLUGINS says which digests it has and where.
A library that is on no list is not opened, and one whose content is not what the list says is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compiler_svc.backends.base import Plugin
from compiler_svc.backends.tensorrt_library import BuildLog
from dovetail.digest import sha256_file
from dovetail.errors import BuildFailedError, IntegrityError, UnsupportedError
from dovetail.recipe import Recipe


def wanted_plugins(recipe: Recipe, allowed: Sequence[Plugin]) -> tuple[Plugin, ...]:
    """The plugins that a recipe names, checked.

    Raises:
        UnsupportedError: One is not on this worker's list.
        IntegrityError: The file is not the one that the list allows.
    """
    known = {item.digest: item for item in allowed}
    names = plugin_digests(recipe)
    if names and not recipe.options.get("version_compatible", False):
        raise UnsupportedError(f"recipe {recipe.name}: plugins travel inside version compatible plans only")
    for digest in names:
        if digest not in known:
            raise UnsupportedError(
                f"recipe {recipe.name}: plugin {digest[:12]} is not allowed on this worker; its operator lists plugins"
                " by sha256 in DOVETAIL_TENSORRT_PLUGINS"
            )
        try:
            found = sha256_file(known[digest].path)
        except OSError as exc:
            raise UnsupportedError(f"plugin {digest[:12]} cannot be read: {exc.strerror}") from exc
        if found != digest:
            raise IntegrityError(f"plugin {digest[:12]} has other content now ({found[:12]}); it was not loaded")
    return tuple(known[digest] for digest in names)


def plugin_digests(recipe: Recipe) -> tuple[str, ...]:
    """The plugins that a recipe names."""
    return tuple(part.strip() for part in str(recipe.options.get("plugins", "")).split(",") if part.strip())


def load_plugins(library: Any, log: BuildLog, plugins: Sequence[Plugin]) -> tuple[Path, ...]:
    """Load them into TensorRT's registry, so that the parser knows their operators.

    Raises:
        BuildFailedError: One does not load.
    """
    for plugin in plugins:
        if library.get_plugin_registry().load_library(str(plugin.path)) is None:
            raise BuildFailedError(f"tensorrt does not load plugin {plugin.digest[:12]}: {log.errors()}")
    return tuple(plugin.path for plugin in plugins)
