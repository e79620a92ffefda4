# SPDX-License-Identifier: Apache-2.0
"""Tables of models, nodes and stale artifacts. Larger ones: `artifact_table`, `offer_view`, `fingerprint_view`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from dovetail.cli.output import age_text, plain, shape_text, short_key, size_text
from dovetail.client import Model, Node, StaleArtifact
from dovetail.tensor import TensorSpec

STATE_STYLE = {"READY": "green", "LOADING": "yellow", "UNAVAILABLE": "red"}


def plain_table(*titles: str) -> Table:
    """A table as all commands use it: no frame, bold titles, two spaces between columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def model_table(models: Iterable[Model]) -> Table:
    """Models with signature and samples; and, if any was exported, by which torch and how far from its module."""
    models = tuple(models)
    exported = any(model.program or model.export_check for model in models)
    titles = ("model", "version", "aliases", "size", "inputs", "outputs", "calibration", "validation")
    table = plain_table(*titles, *(("exported",) if exported else ()))
    for model in models:
        labelled = ", labelled" if model.labelled else ""
        table.add_row(
            plain(model.name),
            plain(model.version),
            plain(", ".join(model.aliases) or "-"),
            size_text(model.size_bytes),
            plain(_signature(model.inputs)),
            plain(_signature(model.outputs)),
            plain(model.calibration_samples or "-"),
            plain(f"{model.validation_samples}{labelled}" if model.validation_samples else "-"),
            *((plain(_export_text(model)),) if exported else ()),
        )
    return table


def _export_text(model: Model) -> str:
    release = f"torch {model.program}" if model.program else ""
    check = model.export_check
    distance = f"SNR {check.snr_db:.1f} dB" if check else ""
    return ", ".join(filter(None, (release, distance))) or "-"


def node_table(nodes: Sequence[Node]) -> Table:
    """Nodes with what they serve; ages are relative to the newest report, so that clocks need not agree."""
    newest = max((node.last_seen_ms for node in nodes), default=0)
    table = plain_table("node", "role", "address", "class", "reported", "serves")
    for node in nodes:
        behind = newest - node.last_seen_ms
        seen = "now" if behind < 1000 else f"{age_text(behind)} before"
        table.add_row(
            plain(node.id),
            plain(node.role),
            plain(node.address or "-"),
            plain(node.hardware_class or "-"),
            seen,
            _serves(node),
        )
    return table


def stale_table(artifacts: Iterable[StaleArtifact]) -> Table:
    """Artifacts with superseded tools: what they were built with and what there is now."""
    table = plain_table("model", "recipe", "key", "class", "tool", "built with", "now", "successor")
    for item in artifacts:
        table.add_row(
            plain(f"{item.model} v{item.version}"),
            plain(item.recipe),
            plain(short_key(item.artifact_key)),
            plain(item.hardware_class or "-"),
            plain("\n".join(tool.name for tool in item.tools)),
            plain("\n".join(tool.built_with or "without" for tool in item.tools)),
            plain("\n".join(tool.available for tool in item.tools)),
            plain(short_key(item.successor) or "-"),
        )
    return table


def _signature(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.datatype} {shape_text(spec.shape)}" for spec in specs)


def _serves(node: Node) -> Text:
    if node.engines and not node.serving:
        return Text(f"builds for {', '.join(node.engines)}")
    lines: list[Text] = []
    for item in node.serving:
        line = Text.assemble(
            (item.state, STATE_STYLE.get(item.state, "")),
            f" {item.model}" + (f" v{item.version}" if item.version else ""),
            f" {item.recipe}".rstrip(),
        )
        if item.artifact_key:
            line.append(f" {short_key(item.artifact_key)}", style="dim")
        if item.reason:
            line.append(f": {item.reason}")
        lines.append(line)
    return Text("\n").join(lines) if lines else Text("-")
