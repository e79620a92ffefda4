# SPDX-License-Identifier: Apache-2.0
"""Which node an inference goes to, decided from what the nodes reported: pure, so that it is tested without any."""

from __future__ import annotations

from collections.abc import Iterable

from dovetail.client.results import Node
from dovetail.errors import NotFoundError


def choose_node(nodes: Iterable[Node], model: str, version: str, *, without: str = "") -> str:
    """Address of the node to ask: of those where the model is READY, the one that reported last.

    Raises:
        NotFoundError: No node has it; the text says what the nodes that know it are doing.
    """
    ready: list[Node] = []
    known: list[str] = []
    others: set[int] = set()
    for node in nodes:
        for serving in node.serving:
            if serving.model != model:
                continue
            if version not in ("", str(serving.version)):
                others.add(serving.version)
                continue
            known.append(f"{node.id} is {serving.state}" + (f" ({serving.reason})" if serving.reason else ""))
            if serving.state == "READY" and node.address and node.address != without:
                ready.append(node)
    if ready:
        return max(ready, key=lambda node: (node.last_seen_ms, node.id)).address
    what = f"model {model!r}" + (f" version {version}" if version else "")
    state = "; ".join(known)
    if others and not known:
        state = f"nodes have version {', '.join(map(str, sorted(others)))}"
    state = state or "no node reported it; `dovetail models` lists what was pushed, `dovetail nodes` what nodes serve"
    raise NotFoundError(f"no node serves {what}: {state}")
