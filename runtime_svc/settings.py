# SPDX-License-Identifier: Apache-2.0
"""Settings of a node: a runtime service or an edge agent, which differ in defaults only.

Read here and nowhere else. A flag of the command line only stands for its variable.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dovetail.digest import check_name
from dovetail.errors import InvalidInputError
from dovetail.log import LEVELS
from dovetail.rpc.address import check_address
from dovetail.settings import SettingsReader, host_identifier
from dovetail.store.redis_address import public_address
from dovetail.trust.key_files import TrustedKeys
from dovetail.trust.policy import TrustMode
from runtime_svc.acquire.negotiate import OBJECTIVES
from runtime_svc.acquire.roster import Wanted
from runtime_svc.front_ends.options import check_front_ends
from runtime_svc.response_cache.cache import DEFAULT_BYTES
from runtime_svc.shared_memory import ANY_PREFIX, DEFAULT_PREFIX
from runtime_svc.shared_memory_object import object_name

OFF = "off"

FLAGS: Mapping[str, str] = {
    "compiler": "address of the compiler service, host:port",
    "data-dir": "directory of this node's artifacts; nobody else may use it",
    "models": "what to serve: * for all, or names with optional versions, digits,resnet50@3",
    "model-repository": "folder of this node's own models: Python models and pipelines",
    "node": "id of this node",
    "address": "where to serve inference, host:port; port 0 takes a free one",
    "advertise": "host:port at which others reach this node, if not the obvious one",
    "metrics": "where to serve Prometheus metrics, host:port, or off",
    "front-ends": "processes that speak gRPC on that port in place of the node's own; 0: none (Linux only)",
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
        sources: Addresses that are asked for chunks before it, in that order (DOVETAIL_SOURCES, separated by commas).
        fetch_bytes_per_s: Most that all fetches together take from the network; 0: no limit.
        data_dir: Directory of this node's artifacts and journals.
        models: What to serve.
        model_repository: Folder of the node's own models (DOVETAIL_MODEL_REPOSITORY), or None.
        node: Id of this node; default: host name and role.
        address: host:port of the inference server.
        front_ends: Processes that speak gRPC at that address in place of the node's own (DOVETAIL_FRONT_ENDS); 0: none.
        advertise: host:port at which others reach it; "": found out.
        metrics: host:port of the metrics, "" for none.
        threads: For one inference; 0: one for each usable core.
        cache_bytes: Most that artifacts may take on disk; 0: what the disk has.
        trust: Whose artifacts are taken: DOVETAIL_TRUST "signed" (by one of the keys at DOVETAIL_TRUSTED_KEYS, a file
            or folder of public keys; default: `trusted-keys` in the data directory) or "any".
        objective: What to optimise.
        accuracy_floor: Least task metric, a fraction; 0: none.
        order_builds: Let the compiler service build what would be better.
        measure: Measure here what was never measured on this hardware class, and report it.
        model_poll_s: How often new registered models are looked for, where all are wanted.
        shared_memory_prefix: How the names of shared memory objects begin that clients may register
            (DOVETAIL_SHARED_MEMORY_PREFIX): "*" for any, "off" (here: "") for none.
        engine_threads: Threads of engines that run at once while several models are busy (DOVETAIL_ENGINE_THREADS); 0:
            one for each usable core.
        response_cache_bytes: Most that replies in memory take, of models that allow it; 0: none there.
        response_cache_url: Redis that replies are shared through (see `dovetail.store.redis_address`), "" for none.
        trace_file: Where traces of requests go once a client switches them on (DOVETAIL_TRACE_FILE), or None.
        reconnect_cap_s: Longest pause between attempts to reach the compiler service.
        grace_s: How long running requests may go on after SIGTERM (DOVETAIL_STOP_GRACE_S).
        port_file: The port is written here once the node answers, or None.
        log_level: See `dovetail.log.LEVELS`.
        log_json: JSON lines; None: unless on a terminal.
    """

    role: str
    compiler: str
    sources: tuple[str, ...]
    fetch_bytes_per_s: int
    data_dir: Path
    models: Wanted
    model_repository: Path | None
    node: str
    address: str
    front_ends: int
    advertise: str
    metrics: str
    threads: int
    cache_bytes: int
    trust: TrustedKeys
    objective: str
    accuracy_floor: float
    order_builds: bool
    measure: bool
    model_poll_s: float
    shared_memory_prefix: str
    engine_threads: int
    response_cache_bytes: int
    response_cache_url: str
    trace_file: Path | None
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
        read = SettingsReader(environ)
        data_dir = read.path("DOVETAIL_DATA_DIR", Path(f"dovetail-{role}"))
        settings = NodeSettings(
            role=role,
            compiler=read.checked("DOVETAIL_COMPILER", "127.0.0.1:7001", check_address),
            sources=read.checked("DOVETAIL_SOURCES", "", _addresses),
            fetch_bytes_per_s=read.integer("DOVETAIL_FETCH_BYTES_PER_S", 0, low=0, high=1 << 40),
            data_dir=data_dir,
            models=read.checked("DOVETAIL_MODELS", "*", Wanted.parse),
            model_repository=read.optional_path("DOVETAIL_MODEL_REPOSITORY"),
            node=read.checked("DOVETAIL_NODE", f"{host_identifier()}-{role}", lambda text: check_name(text, "node id")),
            address=read.checked("DOVETAIL_ADDRESS", "0.0.0.0:8001", check_address),
            front_ends=read.checked("DOVETAIL_FRONT_ENDS", "0", check_front_ends),
            advertise=read.checked("DOVETAIL_ADVERTISE", "", lambda text: check_address(text) if text else ""),
            metrics=read.checked("DOVETAIL_METRICS", metrics, lambda text: "" if text == OFF else check_address(text)),
            threads=read.integer("DOVETAIL_THREADS", 0, low=0, high=1024),
            cache_bytes=read.integer("DOVETAIL_CACHE_BYTES", 0, low=0, high=1 << 60),
            trust=TrustedKeys(
                read.checked("DOVETAIL_TRUST", TrustMode.SIGNED, _trust_mode),
                read.path("DOVETAIL_TRUSTED_KEYS", data_dir / "trusted-keys"),
            ),
            objective=read.choice("DOVETAIL_OBJECTIVE", OBJECTIVES[0], OBJECTIVES),
            accuracy_floor=read.number("DOVETAIL_ACCURACY_FLOOR", 0.0, low=0.0, high=1.0),
            order_builds=read.flag("DOVETAIL_ORDER_BUILDS", default=True),
            measure=read.flag("DOVETAIL_MEASURE", default=True),
            model_poll_s=read.number("DOVETAIL_MODEL_POLL_S", 5.0, low=0.05, high=3600.0),
            shared_memory_prefix=read.checked("DOVETAIL_SHARED_MEMORY_PREFIX", DEFAULT_PREFIX, _shared_memory_prefix),
            engine_threads=read.integer("DOVETAIL_ENGINE_THREADS", 0, low=0, high=1024),
            response_cache_bytes=read.integer("DOVETAIL_RESPONSE_CACHE_BYTES", DEFAULT_BYTES, low=0, high=1 << 40),
            response_cache_url=read.checked("DOVETAIL_RESPONSE_CACHE_URL", "", _redis_address),
            trace_file=read.optional_path("DOVETAIL_TRACE_FILE"),
            reconnect_cap_s=read.number("DOVETAIL_RECONNECT_CAP_S", 30.0, low=0.05, high=3600.0),
            grace_s=read.number("DOVETAIL_STOP_GRACE_S", 5.0, low=0.0, high=600.0),
            port_file=read.optional_path("DOVETAIL_PORT_FILE"),
            log_level=read.choice("DOVETAIL_LOG_LEVEL", "info", LEVELS),
            log_json=read.optional_flag("DOVETAIL_LOG_JSON"),
        )
        read.finish()
        return settings


def _addresses(text: str) -> tuple[str, ...]:
    return tuple(check_address(word.strip()) for word in text.split(",") if word.strip())


def _redis_address(text: str) -> str:
    if text:
        public_address(text)
    return text


def _shared_memory_prefix(text: str) -> str:
    if text == OFF:
        return ""
    if text != ANY_PREFIX and object_name(text) != text:
        raise InvalidInputError(f"{text[:40]!r} cannot begin a shared memory object's name: use one without a slash")
    return text


def _trust_mode(text: str) -> TrustMode:
    try:
        return TrustMode(text)
    except ValueError:
        raise InvalidInputError(f"{text[:40]!r} is not a policy: use one of {', '.join(TrustMode)}") from None


def read_flags(argv: Sequence[str], *, program: str, about: str) -> dict[str, str]:
    """Variables that the command line sets; prints help or usage and exits as argparse does."""
    parser = argparse.ArgumentParser(prog=program, description=about)
    for flag, text in FLAGS.items():
        parser.add_argument(f"--{flag}", help=f"{text} ({_variable(flag)})")
    values = vars(parser.parse_args(list(argv)))
    return {_variable(name): str(value) for name, value in values.items() if value is not None}


def _variable(name: str) -> str:
    return "DOVETAIL_" + name.replace("-", "_").upper()
