# SPDX-License-Identifier: Apache-2.0
"""Dovetail: one model in; on every machine, the artifact that fits it.

`dovetail.connect(address)` and `dovetail.connect_async(address)` are the SDK; they are fetched when first named, so
that a service or device that imports `dovetail` does not load a client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dovetail.client import connect, connect_async

__all__ = ["connect", "connect_async"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("dovetail.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
