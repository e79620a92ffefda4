# SPDX-License-Identifier: Apache-2.0
"""Which node is asked, and what is said where none can be."""

from __future__ import annotations

import pytest

from dovetail.client.messages import read_node
from dovetail.client.results import Node
from dovetail.client.routing import choose_node
from dovetail.errors import NotFoundError
from dovetail.pb.v1 import fleet_pb2


def node(name: str, *, version: int = 1, state: str = "READY", reason: str = "", seen: int = 0) -> Node:
    serving = fleet_pb2.Serving(model="digits", version=version, state=state, reason=reason)
    message = fleet_pb2.Node(id=name, role="edge", address=f"{name}:8001", serving=[serving], last_seen_ms=seen)
    return read_node(message)


def test_of_the_nodes_that_are_ready_the_one_that_reported_last_is_asked() -> None:
    nodes = [node("a", seen=5), node("b", seen=9), node("c", state="LOADING", seen=20)]

    assert choose_node(nodes, "digits", "") == "b:8001"
    assert choose_node(nodes, "digits", "", without="b:8001") == "a:8001"


@pytest.mark.parametrize(
    ("nodes", "version", "text"),
    [
        ([], "", "no node serves model 'digits': no node reported it; `dovetail models` lists what was pushed"),
        ([node("a"), node("b", version=4)], "7", "no node serves model 'digits' version 7: nodes have version 1, 4"),
        ([node("a", state="UNAVAILABLE", reason="no artifact fits")], "", "a is UNAVAILABLE \\(no artifact fits\\)"),
    ],
)
def test_without_one_it_is_said_what_there_is(nodes: list[Node], version: str, text: str) -> None:
    with pytest.raises(NotFoundError, match=text):
        choose_node(nodes, "digits", version)
