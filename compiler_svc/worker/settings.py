# SPDX-License-Identifier: Apache-2.0
"""Settings of a build worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler_svc.backends.base import Plugin
from compiler_svc.shared_settings import StoreSettings, scratch_dir
from compiler_svc.worker.build_spec import ChildLimits
from compiler_svc.worker.signing import SigningSettings, read_key_paths
from dovetail.digest import check_digest, check_name
from dovetail.errors import InvalidInputError
from dovetail.log import LEVELS
from dovetail.settings import SettingsReader, host_identifier
from dovetail.store.chunking import Chunker, chunker_named


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """All that can be set; see `from_env` for the names.

    Attributes:
        store: Where Redis and the durable tier are.
        worker_id: Unique among live workers; named after the host unless set, so several on one host must set it.
        scratch: Directory for builds; a model must fit three times.
        concurrency: Builds at once; figures measured beside another build are worth little, so 1.
        threads: Threads of one build; 0 takes the usable cores.
        lease_s: A build whose worker is silent for this long is given to another.
        heartbeat_s: How often the worker says that it is alive.
        drain_s: How long a running build may go on after SIGTERM before it is stopped.
        measure_budget_s: Seconds spent on one benchmark.
        emulate: CPUs that the gate may run under for machines of other classes, by the names in
            `compiler_svc.worker.emulation.catalogue`, or "auto" for all that run here. Each is tried at the start,
            which takes some seconds of CPU, so none unless asked for.
        arm64_root: Root directory of an ARM64 system with python3, numpy and onnxruntime, for emulated ARM, or None.
        emulated_samples: Samples that such a gate runs at most. 1 to 2 s each with a model of MiniLM's size; at 100
            one changed decision is the 1 % that the gate's thresholds allow.
        limits: What one child process may use.
        plugins: TensorRT plugins that builds may load, "<sha256>=<path>" separated by commas; native code, so none
            unless the operator lists it.
        signing: Keys that manifests are signed with (DOVETAIL_SIGNING_KEY, files separated by commas; DOVETAIL_MAKE_KEY
            makes those that are missing; DOVETAIL_PUBLIC_KEY_DIR gets the public halves).
        chunker: Where published files are cut, see `dovetail.store.chunking`; the same on all workers of a mesh.
        log_level: debug, info, warning or error.
        log_json: JSON lines; None means unless on a terminal.
    """

    store: StoreSettings
    worker_id: str
    scratch: Path
    concurrency: int
    threads: int
    lease_s: float
    heartbeat_s: float
    drain_s: float
    measure_budget_s: float
    emulate: tuple[str, ...]
    arm64_root: Path | None
    emulated_samples: int
    limits: ChildLimits
    plugins: tuple[Plugin, ...]
    signing: SigningSettings
    chunker: Chunker
    log_level: str
    log_json: bool | None

    @staticmethod
    def from_env(environ: Mapping[str, str]) -> WorkerSettings:
        """Read DOVETAIL_* variables.

        Raises:
            InvalidInputError: Names every bad value, not only the first.
        """
        read = SettingsReader(environ)
        defaults = ChildLimits()
        settings = WorkerSettings(
            store=StoreSettings.read(read),
            worker_id=read.checked("DOVETAIL_WORKER_ID", f"worker-{host_identifier()}", _worker_id),
            scratch=scratch_dir(read),
            concurrency=read.integer("DOVETAIL_WORKER_CONCURRENCY", 1, low=1, high=64),
            threads=read.integer("DOVETAIL_WORKER_THREADS", 0, low=0, high=1024),
            lease_s=read.number("DOVETAIL_LEASE_S", 60.0, low=1.0, high=3600.0),
            heartbeat_s=read.number("DOVETAIL_WORKER_HEARTBEAT_S", 5.0, low=0.1, high=15.0),
            drain_s=read.number("DOVETAIL_WORKER_DRAIN_S", 20.0, low=0.0, high=3600.0),
            measure_budget_s=read.number("DOVETAIL_MEASURE_BUDGET_S", 2.0, low=0.1, high=600.0),
            emulate=tuple(read.text("DOVETAIL_EMULATE", "").replace(",", " ").split()),
            arm64_root=read.optional_path("DOVETAIL_ARM64_ROOT"),
            emulated_samples=read.integer("DOVETAIL_EMULATED_SAMPLES", 100, low=1, high=1000),
            limits=ChildLimits(
                wall_s=read.number("DOVETAIL_BUILD_WALL_S", defaults.wall_s, low=1.0, high=86400.0),
                cpu_s=read.integer("DOVETAIL_BUILD_CPU_S", defaults.cpu_s, low=1, high=864000),
                memory_bytes=read.integer(
                    "DOVETAIL_BUILD_MEMORY_BYTES", defaults.memory_bytes, low=1 << 28, high=1 << 50
                ),
            ),
            plugins=read.checked("DOVETAIL_TENSORRT_PLUGINS", "", _plugins),
            signing=SigningSettings(
                keys=read.checked("DOVETAIL_SIGNING_KEY", "", read_key_paths),
                make=read.flag("DOVETAIL_MAKE_KEY", default=False),
                public_folder=read.optional_path("DOVETAIL_PUBLIC_KEY_DIR"),
            ),
            chunker=read.checked("DOVETAIL_CHUNKER", "fixed", chunker_named),
            log_level=read.choice("DOVETAIL_LOG_LEVEL", "info", LEVELS),
            log_json=read.optional_flag("DOVETAIL_LOG_JSON"),
        )
        read.finish()
        return settings


def _plugins(text: str) -> tuple[Plugin, ...]:
    found = []
    for part in text.replace(",", " ").split():
        digest, given, path = part.partition("=")
        check_digest(digest, "digest of a plugin")
        if not given:  # a node may run it inside a plan; there is nothing to build with
            continue
        if not Path(path).is_absolute():
            raise InvalidInputError(f"plugin {part[:80]!r} is not <sha256>=<absolute path of the library>")
        found.append(Plugin(Path(path), digest))
    return tuple(found)


def _worker_id(text: str) -> str:
    return check_name(text, "worker id")
