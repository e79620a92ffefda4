# SPDX-License-Identifier: Apache-2.0
"""`inference.GRPCInferenceService`: TraceSetting and LogSettings, which change a running server's own records.

A request without settings only asks. A setting that nobody knows is refused, where Triton passes over it in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import grpc.aio

from dovetail.errors import InvalidInputError, UnsupportedError
from dovetail.pb import oip
from runtime_svc.log_control import LogControl, LogSettings
from runtime_svc.repository import Repository
from runtime_svc.trace import Tracer
from runtime_svc.trace_settings import TraceSettings, parse_changes

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

TRACE_MODE = "triton"  # the other one is OpenTelemetry's

_LOG_FIELDS: Mapping[str, tuple[str, str, str]] = {
    "log_info": ("info", "bool_param", "boolean"),
    "log_warning": ("warning", "bool_param", "boolean"),
    "log_error": ("error", "bool_param", "boolean"),
    "log_verbose_level": ("verbose_level", "uint32_param", "int32"),
    "log_format": ("format", "string_param", "string"),
}
"""Setting -> attribute of LogSettings, type of its value, and what the protocol's texts call that type."""


class SettingsServicer:
    """Serves the settings of a server.

    Args:
        repository: Knows which models there are.
        tracer: Whose settings TraceSetting changes.
        logs: What LogSettings changes.
    """

    def __init__(self, repository: Repository, tracer: Tracer, logs: LogControl) -> None:
        self._repository = repository
        self._tracer = tracer
        self._logs = logs

    async def TraceSetting(  # noqa: N802
        self, request: oip.TraceSettingRequest, context: Context
    ) -> oip.TraceSettingResponse:
        """Change which requests are traced; of one model, or of all."""
        model = request.model_name
        if model and not self._repository.serves(model):
            raise InvalidInputError(f"Request for unknown model : {model[:200]}")
        if request.settings:
            changes = parse_changes({name: list(value.value) for name, value in request.settings.items()})
            self._tracer.update(model, changes)
        return _trace_reply(self._tracer.settings(model))

    async def LogSettings(self, request: oip.LogSettingsRequest, context: Context) -> oip.LogSettingsResponse:  # noqa: N802
        """Change what is logged."""
        if request.settings:
            self._logs.update(dict(_log_change(name, value) for name, value in request.settings.items()))
        return _log_reply(self._logs.settings())


def _trace_reply(settings: TraceSettings) -> oip.TraceSettingResponse:
    values = {
        "trace_level": settings.level,
        "trace_rate": str(settings.rate),
        "trace_count": str(settings.count),
        "log_frequency": str(settings.log_frequency),
        "trace_file": settings.file,
        "trace_mode": TRACE_MODE,
    }
    response = oip.TraceSettingResponse()
    for name, value in values.items():
        response.settings[name].value.append(value)
    return response


def _log_change(name: str, value: oip.LogSettingsRequest.SettingValue) -> tuple[str, bool | int | str]:
    if name == "log_file":
        raise UnsupportedError("log file location can not be updated through network protocol")
    if name not in _LOG_FIELDS:
        raise InvalidInputError(f"unrecognized log setting '{name[:80]}', expected one of {', '.join(_LOG_FIELDS)}")
    attribute, choice, spoken = _LOG_FIELDS[name]
    if value.WhichOneof("parameter_choice") != choice:
        raise InvalidInputError(f"expect {spoken} for '{name}'")
    given: bool | int | str = getattr(value, choice)
    return attribute, given


def _log_reply(settings: LogSettings) -> oip.LogSettingsResponse:
    response = oip.LogSettingsResponse()
    response.settings["log_file"].string_param = ""  # the process's own output
    for name, (attribute, choice, _) in _LOG_FIELDS.items():
        setattr(response.settings[name], choice, getattr(settings, attribute))
    return response
