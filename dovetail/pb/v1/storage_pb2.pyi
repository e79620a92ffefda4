from dovetail.pb.v1 import compiler_pb2 as _compiler_pb2
from dovetail.pb.v1 import registry_pb2 as _registry_pb2
from dovetail.pb.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StoredChunk(_message.Message):
    __slots__ = ("digest", "size_bytes")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    size_bytes: int
    def __init__(self, digest: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class StoredFile(_message.Message):
    __slots__ = ("role", "name", "digest", "size_bytes", "chunks")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    role: _registry_pb2.FileRole
    name: str
    digest: str
    size_bytes: int
    chunks: _containers.RepeatedCompositeFieldContainer[StoredChunk]
    def __init__(self, role: _Optional[_Union[_registry_pb2.FileRole, str]] = ..., name: _Optional[str] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., chunks: _Optional[_Iterable[_Union[StoredChunk, _Mapping]]] = ...) -> None: ...

class ModelRecord(_message.Message):
    __slots__ = ("model", "files", "calibration_digest", "validation_digest", "tenant")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    model: _registry_pb2.Model
    files: _containers.RepeatedCompositeFieldContainer[StoredFile]
    calibration_digest: str
    validation_digest: str
    tenant: str
    def __init__(self, model: _Optional[_Union[_registry_pb2.Model, _Mapping]] = ..., files: _Optional[_Iterable[_Union[StoredFile, _Mapping]]] = ..., calibration_digest: _Optional[str] = ..., validation_digest: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class BuildJob(_message.Message):
    __slots__ = ("artifact_key", "model", "version", "recipe", "hardware_class", "target_fingerprint_json", "contract_json", "engine", "arch", "toolchain", "emulation", "measure_budget_s", "objective", "isa_class", "accelerator", "priority")
    class ToolchainEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ARTIFACT_KEY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_CLASS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FINGERPRINT_JSON_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_JSON_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ARCH_FIELD_NUMBER: _ClassVar[int]
    TOOLCHAIN_FIELD_NUMBER: _ClassVar[int]
    EMULATION_FIELD_NUMBER: _ClassVar[int]
    MEASURE_BUDGET_S_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    ISA_CLASS_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    artifact_key: str
    model: str
    version: int
    recipe: _types_pb2.Recipe
    hardware_class: str
    target_fingerprint_json: bytes
    contract_json: bytes
    engine: str
    arch: str
    toolchain: _containers.ScalarMap[str, str]
    emulation: str
    measure_budget_s: float
    objective: _types_pb2.Objective
    isa_class: str
    accelerator: str
    priority: _compiler_pb2.BuildPriority
    def __init__(self, artifact_key: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., recipe: _Optional[_Union[_types_pb2.Recipe, _Mapping]] = ..., hardware_class: _Optional[str] = ..., target_fingerprint_json: _Optional[bytes] = ..., contract_json: _Optional[bytes] = ..., engine: _Optional[str] = ..., arch: _Optional[str] = ..., toolchain: _Optional[_Mapping[str, str]] = ..., emulation: _Optional[str] = ..., measure_budget_s: _Optional[float] = ..., objective: _Optional[_Union[_types_pb2.Objective, str]] = ..., isa_class: _Optional[str] = ..., accelerator: _Optional[str] = ..., priority: _Optional[_Union[_compiler_pb2.BuildPriority, str]] = ...) -> None: ...

class PendingPublish(_message.Message):
    __slots__ = ("manifest", "envelope", "ground")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    GROUND_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    envelope: bytes
    ground: str
    def __init__(self, manifest: _Optional[bytes] = ..., envelope: _Optional[bytes] = ..., ground: _Optional[str] = ...) -> None: ...

class Emulation(_message.Message):
    __slots__ = ("name", "isa_class", "arch", "cpu_features", "engines", "precisions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ISA_CLASS_FIELD_NUMBER: _ClassVar[int]
    ARCH_FIELD_NUMBER: _ClassVar[int]
    CPU_FEATURES_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    PRECISIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    isa_class: str
    arch: str
    cpu_features: _containers.RepeatedScalarFieldContainer[str]
    engines: _containers.RepeatedScalarFieldContainer[str]
    precisions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., isa_class: _Optional[str] = ..., arch: _Optional[str] = ..., cpu_features: _Optional[_Iterable[str]] = ..., engines: _Optional[_Iterable[str]] = ..., precisions: _Optional[_Iterable[str]] = ...) -> None: ...

class WorkerRecord(_message.Message):
    __slots__ = ("id", "fingerprint_json", "engines", "toolchain", "last_seen_ms", "hardware_class", "emulates", "concurrency", "draining")
    class ToolchainEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_JSON_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    TOOLCHAIN_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_MS_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_CLASS_FIELD_NUMBER: _ClassVar[int]
    EMULATES_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    id: str
    fingerprint_json: bytes
    engines: _containers.RepeatedScalarFieldContainer[str]
    toolchain: _containers.ScalarMap[str, str]
    last_seen_ms: int
    hardware_class: str
    emulates: _containers.RepeatedCompositeFieldContainer[Emulation]
    concurrency: int
    draining: bool
    def __init__(self, id: _Optional[str] = ..., fingerprint_json: _Optional[bytes] = ..., engines: _Optional[_Iterable[str]] = ..., toolchain: _Optional[_Mapping[str, str]] = ..., last_seen_ms: _Optional[int] = ..., hardware_class: _Optional[str] = ..., emulates: _Optional[_Iterable[_Union[Emulation, _Mapping]]] = ..., concurrency: _Optional[int] = ..., draining: bool = ...) -> None: ...
