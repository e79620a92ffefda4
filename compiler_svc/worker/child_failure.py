# SPDX-License-Identifier: Apache-2.0
"""How a child's task fails, as a value that travels from the child to the worker and the service.

From which exception or death it comes is said in `failure`; what the child was asked for, in `build_spec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from dovetail.benchmark import BenchmarkRecord
from dovetail.errors import ERROR_CLASSES, DovetailError, ErrorCode
from dovetail.gate import GateReport
from dovetail.layers import LayerReport


class FailureKind(StrEnum):
    """Decides whether and when trying again makes sense; the values of BuildFailureKind in compiler.proto."""

    DETERMINISTIC = "deterministic"
    RESOURCE = "resource"
    INFRASTRUCTURE = "infrastructure"


@dataclass(frozen=True, slots=True)
class ChildFailure:
    """A task that did not succeed.

    Attributes:
        kind: Whether trying again makes sense.
        code: Short and stable: "gate_missed", "reference_not_finite", "timeout", "cpu_limit", "out_of_memory",
            "disk_full", "file_too_large", "crash", "no_result"; else the value of `error` ("invalid_input",
            "over_limit", "unsupported", "precondition", "build_failed", "engine", "internal").
        message: For people, with what to do; fit to show to a user.
        log_tail: Last lines of the libraries' own output, at most 4 KiB.
        error: Our error class that fits, for callers that answer an RPC with it.
        gate: Report of the gate if it was missed.
        benchmark: Figures, if they could be measured although the gate was missed.
        size_bytes: Size of the built files if something was built.
        labels: Facts for people about what was built.
        layers: Where the error arises, if the gate was missed.
    """

    kind: FailureKind
    code: str
    message: str
    log_tail: str = ""
    error: ErrorCode = ErrorCode.BUILD_FAILED
    gate: GateReport | None = None
    benchmark: BenchmarkRecord | None = None
    size_bytes: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    layers: LayerReport | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON form without the log, under the one key "failure" of a result document."""
        return {
            "failure": {
                "kind": self.kind.value,
                "code": self.code,
                "message": self.message,
                "error": self.error.value,
                "gate": self.gate.to_json() if self.gate else None,
                "benchmark": self.benchmark.to_json() if self.benchmark else None,
                "size_bytes": self.size_bytes,
                "labels": dict(self.labels),
                "layers": self.layers.to_json() if self.layers else None,
            }
        }

    @staticmethod
    def from_json(document: Mapping[str, Any], *, log_tail: str = "") -> ChildFailure:
        """Read what stands under "failure".

        Raises:
            InvalidInputError: A gate or layer report or benchmark in it is not readable.
            KeyError, ValueError: A field is missing or has a value that is not known.
        """
        return ChildFailure(
            kind=FailureKind(document["kind"]),
            code=str(document["code"])[:64],
            message=str(document["message"])[:2000],
            log_tail=log_tail,
            error=ErrorCode(document["error"]),
            gate=GateReport.from_json(document["gate"]) if document["gate"] else None,
            benchmark=BenchmarkRecord.from_json(document["benchmark"]) if document["benchmark"] else None,
            size_bytes=int(document["size_bytes"]),
            labels={str(key): str(value) for key, value in document["labels"].items()},
            layers=LayerReport.from_json(document["layers"]) if document.get("layers") else None,
        )

    def to_error(self) -> DovetailError:
        """The exception of ours that fits, with the public message."""
        return ERROR_CLASSES[self.error](self.message)
