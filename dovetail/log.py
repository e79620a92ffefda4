# SPDX-License-Identifier: Apache-2.0
"""How log lines of every process look; called once, by `__main__`.

A message is a fixed event name followed by `key=value` fields. On a terminal it is printed as it is; elsewhere each
line is one JSON object, made by `json.dumps`, so that no quote or newline in a field can break it.
"""

from __future__ import annotations

import logging
import sys
from json import dumps
from typing import TextIO

from dovetail.errors import InvalidInputError

LEVELS = ("debug", "info", "warning", "error")

_NOISY = ("asyncio", "grpc", "urllib3", "nncf", "openvino")
"""Libraries whose INFO lines say nothing about our work."""


def configure(service: str, *, json: bool | None = None, level: str = "info", stream: TextIO | None = None) -> None:
    """Send all log lines of this process to one stream; replaces what was configured before.

    Args:
        service: Name of the process, such as "compiler".
        json: True for JSON lines, False for text, None for text on a terminal only.
        level: One of LEVELS.
        stream: Where the lines go; stderr if not given.

    Raises:
        InvalidInputError: No such level.
    """
    if level not in LEVELS:
        raise InvalidInputError(f"log level {level!r} is not one of {', '.join(LEVELS)}")
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    as_json = not target.isatty() if json is None else json
    handler.addFilter(_is_news)
    handler.setFormatter(_JsonFormatter(service) if as_json else _TextFormatter(service))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def _is_news(record: logging.LogRecord) -> bool:
    """False for a caller that went away while it was answered, which gRPC logs as an error of ours with a traceback.

    Source: grpc/_cython/_cygrpc/aio/server.pyx.pxi, `_handle_exceptions` ("raised in core by servicer method").
    """
    error = record.exc_info[1] if record.exc_info else None
    return not (record.name == "grpc._cython.cygrpc" and type(error).__name__ == "ExecuteBatchError")


class _TextFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__(f"%(asctime)s.%(msecs)03d %(levelname)-7s {service}: %(message)s", datefmt="%H:%M:%S")


class _JsonFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        document = {
            "time_ms": int(record.created * 1000),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "event": message.split(maxsplit=1)[0] if message else "",
            "message": message,
        }
        if record.exc_info and record.exc_info[0] is not None:
            document["exception"] = self.formatException(record.exc_info)
        return dumps(document, ensure_ascii=False)
