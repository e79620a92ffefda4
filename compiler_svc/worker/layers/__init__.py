# SPDX-License-Identifier: Apache-2.0
"""Where an artifact's error arises: one file per engine (`<engine>_layers.py`), found by name, nothing to register."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import MappingProxyType
from typing import cast

from compiler_svc.worker.layers.base import LayerProbe

__all__ = ["LayerProbe", "all_probes"]


@cache
def all_probes() -> MappingProxyType[str, LayerProbe]:
    """Engine name -> what looks into its artifacts; an engine without a file has none, and its reports stay empty."""
    found: dict[str, LayerProbe] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name.endswith("_layers"):
            module = cast(LayerProbe, importlib.import_module(f"{__name__}.{info.name}"))
            found[module.ENGINE] = module
    return MappingProxyType(found)
