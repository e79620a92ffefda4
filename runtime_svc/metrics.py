# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics over HTTP, under Triton's names, so that dashboards made for it keep working.

The text is written here and served by the standard library, in a thread of its own: client libraries for Python end
a counter's type line in `_total`, which Triton's names do not have, and a device gets along without one more package.
The figures are those of `statistics`; they are read when somebody asks.

Source: Triton Inference Server, metrics; Prometheus text exposition format 0.0.4.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dovetail.errors import UnavailableError
from runtime_svc.repository import Repository
from runtime_svc.response_cache.figures import CacheFigures
from runtime_svc.scheduling.closing import CloseReason
from runtime_svc.served_model import ServedModel
from runtime_svc.statistics import Failure, Refusal, Snapshot

_log = logging.getLogger(__name__)
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_IDLE_TIMEOUT_S = 10.0  # a scraper that says nothing for so long gives its thread back


@dataclass(frozen=True, slots=True)
class _Metric:
    name: str
    kind: str
    text: str
    value: Callable[[ServedModel, Snapshot], int]


_METRICS: Sequence[_Metric] = (
    _Metric("nv_inference_request_success", "counter", "Requests answered", lambda _, s: s.success.count),
    _Metric("nv_inference_count", "counter", "Rows inferred", lambda _, s: s.inference_count),
    _Metric("nv_inference_exec_count", "counter", "Runs of the engine", lambda _, s: s.execution_count),
    _Metric("nv_inference_pending_request_count", "gauge", "Requests that wait for a batch", lambda m, _: m.pending),
    _Metric("nv_inference_request_duration_us", "counter", "From arrival to result", lambda _, s: s.success.ns // 1000),
    _Metric("nv_inference_queue_duration_us", "counter", "In the queue", lambda _, s: s.queue.ns // 1000),
    _Metric(
        "nv_inference_compute_input_duration_us", "counter", "Gathering rows", lambda _, s: s.compute_input.ns // 1000
    ),
    _Metric(
        "nv_inference_compute_infer_duration_us", "counter", "In the engine", lambda _, s: s.compute_infer.ns // 1000
    ),
    _Metric(
        "nv_inference_compute_output_duration_us",
        "counter",
        "Scattering rows",
        lambda _, s: s.compute_output.ns // 1000,
    ),
    _Metric("nv_cache_num_hits_per_model", "counter", "Requests the cache answered", lambda _, s: s.cache_hit.count),
    _Metric("nv_cache_num_misses_per_model", "counter", "Requests it did not", lambda _, s: s.cache_miss.count),
    _Metric("nv_cache_hit_duration_per_model", "counter", "Looking, in us", lambda _, s: s.cache_hit.ns // 1000),
    _Metric(
        "nv_cache_miss_duration_per_model", "counter", "Looking and keeping, us", lambda _, s: s.cache_miss.ns // 1000
    ),
    _Metric("dovetail_batch_padding_rows", "counter", "Rows run to pad batches", lambda _, s: s.padded_rows),
)


@dataclass(frozen=True, slots=True)
class _Split:
    """Counters of one name, told apart by a label of which every value is shown from the start."""

    name: str
    text: str
    label: str
    labels: Sequence[str]
    values: Callable[[Snapshot], Mapping[str, int]]


_SPLITS: Sequence[_Split] = (
    _Split(
        "nv_inference_request_failure",
        "Requests refused, dropped or failed",
        "reason",
        tuple(Failure),
        lambda s: {str(reason): count for reason, count in s.failures.items()},
    ),
    _Split(
        "dovetail_queue_refusal_count",
        "Requests that ended without a run",
        "reason",
        tuple(Refusal),
        lambda s: {str(reason): count for reason, count in s.refusals.items()},
    ),
    _Split(
        "dovetail_batch_close_count",
        "Batches, by why they had no more requests",
        "reason",
        tuple(CloseReason),
        lambda s: s.closings,
    ),
)


_CACHE: Sequence[tuple[str, str, str, Callable[[CacheFigures], int]]] = (
    ("bytes", "gauge", "Memory that kept replies take", lambda c: c.size_bytes),
    ("limit_bytes", "gauge", "Most that they may take", lambda c: c.limit_bytes),
    ("entries", "gauge", "Replies in memory", lambda c: c.entries),
    ("eviction_count", "counter", "Replies that made room for others", lambda c: c.evictions),
    ("memory_hit_count", "counter", "Requests answered from memory", lambda c: c.memory_hits),
    ("redis_hit_count", "counter", "Requests answered from Redis", lambda c: c.redis_hits),
    ("miss_count", "counter", "Requests that nothing was kept for", lambda c: c.misses),
    ("redis_failure_count", "counter", "Times that Redis failed or was too slow", lambda c: c.redis_failures),
)
"""Of the node's response cache as a whole: name behind the prefix, kind, text, value."""


def render_metrics(models: Sequence[ServedModel], cache: CacheFigures | None = None) -> str:
    """All figures as Prometheus text; durations are sums in microseconds.

    Args:
        models: Whose.
        cache: Of the response cache, if there is one.
    """
    figures = [(_labels(model), model, model.statistics.snapshot()) for model in models]
    lines: list[str] = []
    for metric in _METRICS:
        lines += (f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}")
        lines += (f"{metric.name}{labels} {metric.value(model, snapshot)}" for labels, model, snapshot in figures)
    for split in _SPLITS:
        lines += (f"# HELP {split.name} {split.text}", f"# TYPE {split.name} counter")
        for labels, _, snapshot in figures:
            values = split.values(snapshot)
            lines += (
                f'{split.name}{labels[:-1]},{split.label}="{value}"}} {values.get(value, 0)}' for value in split.labels
            )
    lines += ("# HELP dovetail_model_info Artifact that answers for a model", "# TYPE dovetail_model_info gauge")
    lines += (f"dovetail_model_info{_info_labels(model)} 1" for model in models)
    if cache is not None:
        for name, kind, text, value in _CACHE:
            whole = f"dovetail_response_cache_{name}"
            lines += (f"# HELP {whole} {text}", f"# TYPE {whole} {kind}", f"{whole} {value(cache)}")
    return "\n".join(lines) + "\n"


class MetricsServer:
    """Answers GET /metrics until closed. `port` is where."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        self.port = int(server.server_address[1])
        self._thread.start()

    def close(self) -> None:
        """Stop and free the port; blocks for up to half a second."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def start_metrics_server(
    repository: Repository, host: str, port: int, *, cache: Callable[[], CacheFigures] | None = None
) -> MetricsServer:
    """Serve a repository's metrics on a port of their own; port 0 takes a free one.

    Args:
        repository: Whose models are shown.
        host: Where to listen.
        port: Likewise.
        cache: Figures of the response cache, if there is one; called by any thread.

    Raises:
        UnavailableError: The port is taken or not allowed.
    """

    class Handler(_Handler):
        read = staticmethod(lambda: render_metrics(repository.serving(), None if cache is None else cache()))

    family = _Server6 if ":" in host else ThreadingHTTPServer
    try:
        server = family((host, port), Handler)
    except OSError as exc:
        raise UnavailableError(
            f"metrics cannot be served on {host}:{port}: {exc.strerror or exc}; choose another port"
        ) from exc
    return MetricsServer(server)


class _Server6(ThreadingHTTPServer):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    read: Callable[[], str]
    timeout = _IDLE_TIMEOUT_S

    def do_GET(self) -> None:
        if self.path.split("?", 1)[0] != "/metrics":
            self.send_error(404)
            return
        body = self.read().encode()
        self.send_response(200)
        self.send_header("Content-Type", _CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the standard library's name
        _log.debug("metrics.request peer=%s", self.client_address[0])


def _labels(model: ServedModel) -> str:
    return f'{{model="{model.facts.name}",version="{model.facts.version}"}}'


def _info_labels(model: ServedModel) -> str:
    facts = model.facts
    pairs = {
        "model": facts.name,
        "version": str(facts.version),
        "artifact": facts.artifact_key,
        "recipe": facts.recipe,
        "engine": facts.engine,
        "device": facts.device,
    }
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in pairs.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
