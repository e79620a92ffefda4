# SPDX-License-Identifier: Apache-2.0
"""Backends, one file each (`<engine>_backend.py`), found by name: nothing to register."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import MappingProxyType
from typing import cast

from compiler_svc.backends.base import BackendModule

__all__ = ["BackendModule", "all_backends"]


@cache
def all_backends() -> MappingProxyType[str, BackendModule]:
    """Engine name -> the backend that builds for it."""
    found: dict[str, BackendModule] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name.endswith("_backend"):
            module = cast(BackendModule, importlib.import_module(f"{__name__}.{info.name}"))
            found[module.ENGINE] = module
    return MappingProxyType(found)
