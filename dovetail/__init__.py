# SPDX-License-Identifier: Apache-2.0
"""Dovetail: one model in; on every machine, the artifact that fits it.

`dovetail.connect(address)` and `dovetail.connect_async(address)` are the SDK, `dovetail.export(module, example_inputs)`
makes a bundle of a torch module; they are fetched when first named, so that a service or device that imports `dovetail`
does not load a client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dovetail.client import connect, connect_async
    from dovetail.client.export import Exported, export

__all__ = ["Exported", "connect", "connect_async", "export"]

_MODULES = {"Exported": "dovetail.client.export", "export": "dovetail.client.export"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        import importlib

        return getattr(importlib.import_module(_MODULES.get(name, "dovetail.client")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
