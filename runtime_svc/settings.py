# SPDX-License-Identifier: Apache-2.0
"""Settings of a node: a runtime service or an edge agent, which differ in defaults only.

Read here and nowhere else. A flag of the command line only stands for its variable.
"""

from __future__ import annotations

import argparse
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dovetail.digest import check_name
from dovetail.errors import InvalidInputError
from dovetail.log import LEVELS
from dovetail.rpc.address import check_address
from runtime_svc.acquire.negotiate import OBJECTIVES
from runtime_svc.acquire.roster import Wanted

_T = TypeVar("_T")
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
OFF = "off"

FLAGS: Mapping[str, str] = {
    "compiler": "address of the compiler service, host:port",
    "data-dir": "directory of this node's artifacts; nobody else may use it",
    "models": "what to serve: * for all, or names with optional versions, digits,resnet50@3",
    "node": "id of this node",
    "address": "where to serve inference, host:port; port 0 takes a free one",
    "advertise": "host:port at which others reach this node, if not the obvious one",
    "metrics": "where to serve Prometheus metrics, host:port, or off",
    "threads": "threads for one inference; 0: one for each usable core",
    "port-file": "write the inference port here once the node answers",
    "log-level": f"one of {', '.join(LEVELS)}",
}
"""Flags of `python -m runtime_svc` and `python -m edge_agent`; `--data-dir` stands for DOVETAIL_DATA_DIR, and so on."""


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """All that can be set; variables are DOVETAIL_ and the name in capitals, or as given.

    Attributes:
        role: "runtime" or "edge"; not a variable.
        compiler: Address of the compiler service.
        data_dir: Directory of this node's artifacts and journals.
        models: What to serve.
        node: Id of this node; default: host name and role.
        address: host:port of the inference server.
        advertise: host:port at which others reach it; "": found out.
        metrics: host:port of the metrics, "" for none.
        threads: For one inference; 0: one for each usable core.
        cache_bytes: Most that artifacts may take on disk; 0: what the disk has.
        objective: What to optimise.
        accuracy_floor: Least task metric, a fraction; 0: none.
        order_builds: Let the compiler service build what would be better.
        model_poll_s: How often new registered models are looked for, where all are wanted.
        reconnect_cap_s: Longest pause between attempts to reach the compiler service.
        grace_s: How long running requests may go on after SIGTERM (DOVETAIL_STOP_GRACE_S).
        port_file: The port is written here once the node answers, or None.
        log_level: See `dovetail.log.LEVELS`.
        log_json: JSON lines; None: unless on a terminal.
    """

    role: str
    compiler: str
    data_dir: Path
    models: Wanted
    node: str
    address: str
    advertise: str
    metrics: str
    threads: int
    cache_bytes: int
    objective: str
    accuracy_floor: float
    order_builds: bool
    model_poll_s: float
    reconnect_cap_s: float
    grace_s: float
    port_file: Path | None
    log_level: str
    log_json: bool | None

    @staticmethod
    def from_env(environ: Mapping[str, str], *, role: str, metrics: str = OFF) -> NodeSettings:
        """Read DOVETAIL_* variables; an empty one counts as not set.

        Args:
            environ: The variables.
            role: "runtime" or "edge".
            metrics: Default address of the metrics.

        Raises:
            InvalidInputError: Names every bad value, not only the first.
        """
        read = _Reader(environ)
        port_file = read.text("PORT_FILE", "")
        settings = NodeSettings(
            role=role,
            compiler=read.checked("COMPILER", "127.0.0.1:7001", check_address),
            data_dir=Path(read.text("DATA_DIR", f"dovetail-{role}")),
            models=read.checked("MODELS", "*", Wanted.parse),
            node=read.checked("NODE", _default_node(role), lambda text: check_name(text, "node id")),
            address=read.checked("ADDRESS", "0.0.0.0:8001", check_address),
            advertise=read.checked("ADVERTISE", "", lambda text: check_address(text) if text else ""),
            metrics=read.checked("METRICS", metrics, lambda text: "" if text == OFF else check_address(text)),
            threads=read.integer("THREADS", 0, high=1024),
            cache_bytes=read.integer("CACHE_BYTES", 0, high=1 << 60),
            objective=read.checked("OBJECTIVE", OBJECTIVES[0], _one_of(OBJECTIVES)),
            accuracy_floor=read.number("ACCURACY_FLOOR", 0.0, low=0.0, high=1.0),
            order_builds=read.checked("ORDER_BUILDS", "yes", _flag),
            model_poll_s=read.number("MODEL_POLL_S", 5.0, low=0.05, high=3600.0),
            reconnect_cap_s=read.number("RECONNECT_CAP_S", 30.0, low=0.05, high=3600.0),
            grace_s=read.number("STOP_GRACE_S", 5.0, low=0.0, high=600.0),
            port_file=Path(port_file) if port_file else None,
            log_level=read.checked("LOG_LEVEL", "info", _one_of(LEVELS)),
            log_json=read.checked("LOG_JSON", "", lambda text: _flag(text) if text else None),
        )
        read.finish()
        return settings


def read_flags(argv: Sequence[str], *, program: str, about: str) -> dict[str, str]:
    """Variables that the command line sets; prints help or usage and exits as argparse does."""
    parser = argparse.ArgumentParser(prog=program, description=about)
    for flag, text in FLAGS.items():
        parser.add_argument(f"--{flag}", help=f"{text} ({_variable(flag)})")
    values = vars(parser.parse_args(list(argv)))
    return {_variable(name): str(value) for name, value in values.items() if value is not None}


class _Reader:
    """Collects values and complaints."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._problems: list[str] = []

    def text(self, name: str, default: str) -> str:
        return self._environ.get(_variable(name)) or default

    def checked(self, name: str, default: str, check: Callable[[str], _T]) -> _T:
        try:
            return check(self.text(name, default))
        except InvalidInputError as exc:
            self._problems.append(f"{_variable(name)}: {exc}")
            return check(default)

    def integer(self, name: str, default: int, *, high: int) -> int:
        return int(self._bounded(name, default, int, 0, high))

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        return self._bounded(name, default, float, low, high)

    def _bounded(self, name: str, default: float, kind: Callable[[str], float], low: float, high: float) -> float:
        text = self.text(name, "")
        try:
            value = kind(text) if text else default
        except ValueError:
            value = float("nan")
        if low <= value <= high:
            return value
        self._problems.append(f"{_variable(name)}={text!r}: use a number from {low} to {high}")
        return default

    def finish(self) -> None:
        if self._problems:
            raise InvalidInputError("bad settings: " + "; ".join(self._problems))


def _variable(name: str) -> str:
    return "DOVETAIL_" + name.replace("-", "_").upper()


def _flag(text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise InvalidInputError(f"{text!r} is not one of {', '.join(_FLAGS)}")
    return _FLAGS[text.lower()]


def _one_of(allowed: Sequence[str]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in allowed:
            raise InvalidInputError(f"{text!r} is not one of {', '.join(allowed)}")
        return text

    return check


def _default_node(role: str) -> str:
    host = re.sub(r"[^a-z0-9._-]+", "-", socket.gethostname().lower()).strip("._-") or "node"
    return f"{host[:100]}-{role}"
