# SPDX-License-Identifier: Apache-2.0
"""What TensorRT says while it works, kept so that an error of ours can quote it.

TensorRT reports failures by None or False and tells the reason to its logger only.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from dovetail.errors import brief

_KEPT_LINES = 50


class TensorRtLog:
    """The last errors and warnings of one runtime. TensorRT may log from any thread.

    Attributes:
        logger: A `tensorrt.ILogger`; whatever uses it keeps it alive.
    """

    def __init__(self, trt: Any) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.logger = _logger(trt, self._lines)

    def since_last(self) -> str:
        """What was said since this was asked last, on one line and shortened; "" if nothing."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        return brief("; ".join(lines))


def _logger(trt: Any, lines: deque[str]) -> Any:
    worst = int(trt.ILogger.Severity.WARNING)

    class Kept(trt.ILogger):  # type: ignore[misc]
        """TensorRT calls `log`; nothing may be raised into it."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 wants the base called by name

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= worst:
                lines.append(str(msg))

    return Kept()
