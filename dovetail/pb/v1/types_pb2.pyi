from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_OPTIMAL: _ClassVar[Verdict]
    VERDICT_SUBOPTIMAL: _ClassVar[Verdict]
    VERDICT_RECOMPILE: _ClassVar[Verdict]
    VERDICT_UNSUPPORTED: _ClassVar[Verdict]

class Objective(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBJECTIVE_UNSPECIFIED: _ClassVar[Objective]
    OBJECTIVE_LATENCY: _ClassVar[Objective]
    OBJECTIVE_THROUGHPUT: _ClassVar[Objective]
    OBJECTIVE_MEMORY: _ClassVar[Objective]
    OBJECTIVE_SIZE: _ClassVar[Objective]
VERDICT_UNSPECIFIED: Verdict
VERDICT_OPTIMAL: Verdict
VERDICT_SUBOPTIMAL: Verdict
VERDICT_RECOMPILE: Verdict
VERDICT_UNSUPPORTED: Verdict
OBJECTIVE_UNSPECIFIED: Objective
OBJECTIVE_LATENCY: Objective
OBJECTIVE_THROUGHPUT: Objective
OBJECTIVE_MEMORY: Objective
OBJECTIVE_SIZE: Objective

class Reason(_message.Message):
    __slots__ = ("rule", "verdict", "needs", "has", "way_out")
    RULE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    NEEDS_FIELD_NUMBER: _ClassVar[int]
    HAS_FIELD_NUMBER: _ClassVar[int]
    WAY_OUT_FIELD_NUMBER: _ClassVar[int]
    rule: str
    verdict: Verdict
    needs: str
    has: str
    way_out: str
    def __init__(self, rule: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., needs: _Optional[str] = ..., has: _Optional[str] = ..., way_out: _Optional[str] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "datatype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Recipe(_message.Message):
    __slots__ = ("name", "engine", "device", "precision", "document_json")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_JSON_FIELD_NUMBER: _ClassVar[int]
    name: str
    engine: str
    device: str
    precision: str
    document_json: bytes
    def __init__(self, name: _Optional[str] = ..., engine: _Optional[str] = ..., device: _Optional[str] = ..., precision: _Optional[str] = ..., document_json: _Optional[bytes] = ...) -> None: ...
