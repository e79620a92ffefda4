# SPDX-License-Identifier: Apache-2.0
"""Engines, one file each (`<engine>_engine.py`), found by name and imported only when asked for."""

from __future__ import annotations

import importlib
import pkgutil
from typing import cast

from dovetail.engines.base import Engine, EngineModule, Session, SessionOptions
from dovetail.errors import UnsupportedError

__all__ = ["Engine", "Session", "SessionOptions", "create_engine", "engine_names"]


def engine_names() -> tuple[str, ...]:
    """Names of the engines this version has code for; their libraries may not be installed."""
    return tuple(
        sorted(
            info.name.removesuffix("_engine")
            for info in pkgutil.iter_modules(__path__)
            if info.name.endswith("_engine")
        )
    )


def create_engine(name: str) -> Engine:
    """The engine of that name.

    Raises:
        UnsupportedError: This version has no such engine, or its library is not installed.
    """
    if name not in engine_names():
        raise UnsupportedError(f"engine {name!r} is unknown to this version; it knows {', '.join(engine_names())}")
    module = cast(EngineModule, importlib.import_module(f"{__name__}.{name}_engine"))
    return module.create()
