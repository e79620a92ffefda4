# SPDX-License-Identifier: Apache-2.0
"""Backends, one file each (`<engine>_backend.py`), found by name: nothing to register.

A backend that keeps something between builds says under which key in `<engine>_kept.py`, without its library.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import MappingProxyType
from typing import cast

from compiler_svc.backends.base import BackendModule, KeptModule

__all__ = ["BackendModule", "all_backends", "all_kept"]


@cache
def all_backends() -> MappingProxyType[str, BackendModule]:
    """Engine name -> the backend that builds for it."""
    found: dict[str, BackendModule] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name.endswith("_backend"):
            module = cast(BackendModule, importlib.import_module(f"{__name__}.{info.name}"))
            found[module.ENGINE] = module
    return MappingProxyType(found)


@cache
def all_kept() -> MappingProxyType[str, KeptModule]:
    """Engine name -> what says which builds of it may share what they keep."""
    found: dict[str, KeptModule] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name.endswith("_kept"):
            module = cast(KeptModule, importlib.import_module(f"{__name__}.{info.name}"))
            found[module.ENGINE] = module
    return MappingProxyType(found)
