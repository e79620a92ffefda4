# SPDX-License-Identifier: Apache-2.0
"""Settings of the compiler service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler_svc.collection.settings import CollectionSettings
from compiler_svc.intake.limits import OLDEST_OPSET, FleetTarget, ModelLimits
from compiler_svc.shared_settings import StoreSettings, scratch_dir
from compiler_svc.upload import UploadLimits
from compiler_svc.worker.build_spec import ChildLimits
from dovetail.log import LEVELS
from dovetail.rpc.address import check_address
from dovetail.rpc.chunk_sender import SendLimits
from dovetail.settings import SettingsReader


@dataclass(frozen=True, slots=True)
class CompilerSettings:
    """All that can be set; see `from_env` for the names.

    Attributes:
        store: Where Redis and the durable tier are.
        address: host:port to serve on; port 0 takes a free one.
        port_file: The port is written here once the service answers, or None.
        scratch: Directory for uploads.
        upload: What a push may bring.
        intake: What the child that checks a pushed model may use.
        model: What a pushed model may be.
        target: Newest stamps that the oldest runtime of the fleet loads; pushed models are brought to them.
        concurrent_intakes: Such children at once.
        fetch: What handing out chunks may cost.
        collection: When what nobody needs is collected, and how fast the rest is verified.
        grace_s: How long running calls may go on after SIGTERM.
        log_level: debug, info, warning or error.
        log_json: JSON lines; None means unless on a terminal.
    """

    store: StoreSettings
    address: str
    port_file: Path | None
    scratch: Path
    upload: UploadLimits
    intake: ChildLimits
    model: ModelLimits
    target: FleetTarget
    concurrent_intakes: int
    fetch: SendLimits
    collection: CollectionSettings
    grace_s: float
    log_level: str
    log_json: bool | None

    @staticmethod
    def from_env(environ: Mapping[str, str]) -> CompilerSettings:
        """Read DOVETAIL_* variables.

        Raises:
            InvalidInputError: Names every bad value, not only the first.
        """
        read = SettingsReader(environ)
        upload, model, target = UploadLimits(), ModelLimits(), FleetTarget()
        settings = CompilerSettings(
            store=StoreSettings.read(read),
            address=read.checked("DOVETAIL_COMPILER_ADDRESS", "0.0.0.0:7001", check_address),
            port_file=read.optional_path("DOVETAIL_PORT_FILE"),
            scratch=scratch_dir(read),
            upload=UploadLimits(
                total_bytes=read.integer("DOVETAIL_MAX_PUSH_BYTES", upload.total_bytes, low=1, high=1 << 50)
            ),
            intake=ChildLimits(wall_s=read.number("DOVETAIL_INTAKE_WALL_S", 300.0, low=1.0, high=86400.0)),
            model=ModelLimits(
                inline_bytes=read.integer("DOVETAIL_INLINE_BYTES", model.inline_bytes, low=0, high=model.inline_bytes),
                simplify_s=read.number("DOVETAIL_SIMPLIFY_S", model.simplify_s, low=0.0, high=86400.0),
            ),
            target=FleetTarget(
                opset=read.integer("DOVETAIL_FLEET_OPSET", target.opset, low=OLDEST_OPSET, high=64),
                ir_version=read.integer("DOVETAIL_FLEET_IR", target.ir_version, low=7, high=64),
            ),
            concurrent_intakes=read.integer("DOVETAIL_CONCURRENT_INTAKES", 2, low=1, high=64),
            fetch=SendLimits.read(read),
            collection=CollectionSettings.read(read),
            grace_s=read.number("DOVETAIL_STOP_GRACE_S", 5.0, low=0.0, high=600.0),
            log_level=read.choice("DOVETAIL_LOG_LEVEL", "info", LEVELS),
            log_json=read.optional_flag("DOVETAIL_LOG_JSON"),
        )
        read.finish()
        return settings
