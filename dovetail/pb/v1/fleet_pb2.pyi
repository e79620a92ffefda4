from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Serving(_message.Message):
    __slots__ = ("model", "version", "artifact_key", "recipe", "state", "reason")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_KEY_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    artifact_key: str
    recipe: str
    state: str
    reason: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., artifact_key: _Optional[str] = ..., recipe: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("id", "role", "address", "fingerprint_json", "serving", "hardware_class", "last_seen_ms", "engines")
    ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_JSON_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_CLASS_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_MS_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    id: str
    role: str
    address: str
    fingerprint_json: bytes
    serving: _containers.RepeatedCompositeFieldContainer[Serving]
    hardware_class: str
    last_seen_ms: int
    engines: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., role: _Optional[str] = ..., address: _Optional[str] = ..., fingerprint_json: _Optional[bytes] = ..., serving: _Optional[_Iterable[_Union[Serving, _Mapping]]] = ..., hardware_class: _Optional[str] = ..., last_seen_ms: _Optional[int] = ..., engines: _Optional[_Iterable[str]] = ...) -> None: ...

class ReportNodeResponse(_message.Message):
    __slots__ = ("next_report_s",)
    NEXT_REPORT_S_FIELD_NUMBER: _ClassVar[int]
    next_report_s: float
    def __init__(self, next_report_s: _Optional[float] = ...) -> None: ...

class ListNodesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListNodesResponse(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ...) -> None: ...
