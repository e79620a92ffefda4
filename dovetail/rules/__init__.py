# SPDX-License-Identifier: Apache-2.0
"""Compatibility rules, one file per engine (`<engine>_rules.py`), found by name: nothing to register."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import MappingProxyType
from typing import cast

from dovetail.rules.base import EngineRules, ModelFacts, Reason, Rule, Verdict

__all__ = ["EngineRules", "ModelFacts", "Reason", "Rule", "Verdict", "all_rules", "rules_for"]


@cache
def all_rules() -> MappingProxyType[str, EngineRules]:
    """Engine name -> its rules, in order of module name."""
    found: dict[str, EngineRules] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name.endswith("_rules"):
            module = cast(EngineRules, importlib.import_module(f"{__name__}.{info.name}"))
            found[module.ENGINE] = module
    return MappingProxyType(found)


def rules_for(engine: str) -> EngineRules | None:
    """Rules of that engine, or None if this version does not know it."""
    return all_rules().get(engine)
