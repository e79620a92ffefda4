# SPDX-License-Identifier: Apache-2.0
"""`dovetail why`: the whole decision for one model on one machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.context import JsonFlag, ModelVersion, connected
from dovetail.errors import NotFoundError

if TYPE_CHECKING:
    from dovetail.client import Client
    from dovetail.client.results import Node, Serving
    from dovetail.fingerprint import Fingerprint


class _Goal(StrEnum):
    """The SDK's objectives, named here so that help needs no SDK; a test holds the two together."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    MEMORY = "memory"
    SIZE = "size"


def why(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of the model.", metavar="MODEL")],
    version: ModelVersion = 0,
    fingerprint: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, metavar="FILE", help="Ask for the machine that this file describes."),
    ] = None,
    node: Annotated[str, typer.Option(metavar="NODE", help="Ask for a node of the mesh, by its id.")] = "",
    objective: Annotated[_Goal, typer.Option(help="What to optimise.")] = _Goal.LATENCY,
    accuracy_floor: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Accuracy that must be reached, as a fraction; 0: none.")
    ] = 0.0,
    as_json: JsonFlag = False,
) -> None:
    """Why a machine gets the artifact that it gets.

    Why no other, and what would be better. Default: this machine. With --node also what that node itself refused.
    """
    if fingerprint is not None and node:
        raise typer.BadParameter("give --fingerprint or --node, not both")
    from dovetail.cli.output import data_console, plain, print_json
    from dovetail.client import Objective

    with connected(ctx) as client:
        asked = _node(client, node) if node else None
        machine = asked.fingerprint if asked is not None and asked.fingerprint else _machine(fingerprint)
        offer = client.negotiate(
            model, machine, version=version, objective=Objective(objective.value), accuracy_floor=accuracy_floor
        )
    serving = next((item for item in asked.serving if item.model == model), None) if asked else None
    if as_json:
        from dataclasses import asdict

        from dovetail.cli.documents import offer_document

        told = {"node": {"id": node, **asdict(serving)}} if serving else {}
        print_json({**offer_document(offer), **told})
    else:
        from dovetail.cli.offer_view import offer_panel

        data_console().print(offer_panel(offer))
        if serving is not None:
            data_console().print(plain(f"{node} says: {_own_words(serving)}"), soft_wrap=True)


def _own_words(serving: Serving) -> str:
    """What a node says about a model; only it knows what it refused, and why."""
    what = f"{serving.state} {serving.recipe}".strip()
    return f"{what}: {serving.reason}" if serving.reason else what


def _machine(path: Path | None) -> Fingerprint:
    if path is not None:
        from dovetail.cli.fingerprint_file import read_fingerprint

        return read_fingerprint(path)
    from dovetail.cli.output import message_console
    from dovetail.probe import measure_sync

    with message_console().status("measuring this machine"):
        return measure_sync()


def _node(client: Client, node_id: str) -> Node:
    nodes = client.nodes()
    for node in nodes:
        if node.id == node_id and node.fingerprint is not None:
            return node
    raise NotFoundError(f"no node {node_id!r} with a fingerprint; there are {', '.join(n.id for n in nodes) or 'none'}")
