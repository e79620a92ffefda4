# SPDX-License-Identifier: Apache-2.0
"""The nodes that a client's inferences go to: one for each model, kept until it fails, then another.

How one is chosen from what the nodes reported is `routing`'s business; how a node is called, `inference`'s.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from dovetail.client.inference import InferenceNode
from dovetail.client.results import Node, Tensors
from dovetail.client.routing import choose_node
from dovetail.errors import UnavailableError
from dovetail.tensor import Array


class ChosenNodes:
    """Connections to nodes; belongs to one event loop.

    Args:
        fixed: host:port that every inference goes to; None: chosen for each model.
        list_nodes: What the nodes reported last.
    """

    def __init__(self, fixed: str | None, list_nodes: Callable[[], Awaitable[Sequence[Node]]]) -> None:
        self._fixed = fixed
        self._list_nodes = list_nodes
        self._open: dict[str, InferenceNode] = {}
        self._chosen: dict[tuple[str, str], str] = {}

    async def node_for(self, model: str, version: str, *, without: str = "") -> InferenceNode:
        """The node to ask. Raises NotFoundError if none serves the model."""
        address = self._fixed or self._chosen.get((model, version))
        if address is None:
            address = choose_node(await self._list_nodes(), model, version, without=without)
            self._chosen[(model, version)] = address
        if address not in self._open:
            self._open[address] = InferenceNode(address)
        return self._open[address]

    async def infer(
        self, model: str, inputs: Tensors, *, version: str, outputs: Sequence[str], timeout_s: float
    ) -> Mapping[str, Array]:
        """One inference; asks another node if the chosen one has gone since."""
        node = await self.node_for(model, version)
        try:
            return await node.infer(model, inputs, version=version, outputs=outputs, timeout_s=timeout_s)
        except UnavailableError:
            if self._fixed is not None or self._chosen.pop((model, version), None) is None:
                raise
        other = await self.node_for(model, version, without=node.address)
        return await other.infer(model, inputs, version=version, outputs=outputs, timeout_s=timeout_s)

    async def close(self) -> None:
        """Close all connections."""
        for node in self._open.values():
            await node.close()
        self._open.clear()
