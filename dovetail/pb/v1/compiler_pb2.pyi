from dovetail.pb.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BuildPriority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BUILD_PRIORITY_UNSPECIFIED: _ClassVar[BuildPriority]
    BUILD_PRIORITY_INTERACTIVE: _ClassVar[BuildPriority]
    BUILD_PRIORITY_NODE: _ClassVar[BuildPriority]
    BUILD_PRIORITY_BACKGROUND: _ClassVar[BuildPriority]

class BuildPhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BUILD_PHASE_UNSPECIFIED: _ClassVar[BuildPhase]
    BUILD_PHASE_QUEUED: _ClassVar[BuildPhase]
    BUILD_PHASE_UNROUTED: _ClassVar[BuildPhase]
    BUILD_PHASE_BUILDING: _ClassVar[BuildPhase]
    BUILD_PHASE_GATING: _ClassVar[BuildPhase]
    BUILD_PHASE_MEASURING: _ClassVar[BuildPhase]
    BUILD_PHASE_PUBLISHING: _ClassVar[BuildPhase]
    BUILD_PHASE_READY: _ClassVar[BuildPhase]
    BUILD_PHASE_FAILED: _ClassVar[BuildPhase]
    BUILD_PHASE_CANCELLED: _ClassVar[BuildPhase]

class BuildFailureKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BUILD_FAILURE_KIND_UNSPECIFIED: _ClassVar[BuildFailureKind]
    BUILD_FAILURE_KIND_DETERMINISTIC: _ClassVar[BuildFailureKind]
    BUILD_FAILURE_KIND_RESOURCE: _ClassVar[BuildFailureKind]
    BUILD_FAILURE_KIND_INFRASTRUCTURE: _ClassVar[BuildFailureKind]

class JobWait(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_WAIT_UNSPECIFIED: _ClassVar[JobWait]
    JOB_WAIT_NO_WORKER: _ClassVar[JobWait]
    JOB_WAIT_WORKERS_BUSY: _ClassVar[JobWait]
    JOB_WAIT_BACK_OFF: _ClassVar[JobWait]
    JOB_WAIT_IN_LINE: _ClassVar[JobWait]
BUILD_PRIORITY_UNSPECIFIED: BuildPriority
BUILD_PRIORITY_INTERACTIVE: BuildPriority
BUILD_PRIORITY_NODE: BuildPriority
BUILD_PRIORITY_BACKGROUND: BuildPriority
BUILD_PHASE_UNSPECIFIED: BuildPhase
BUILD_PHASE_QUEUED: BuildPhase
BUILD_PHASE_UNROUTED: BuildPhase
BUILD_PHASE_BUILDING: BuildPhase
BUILD_PHASE_GATING: BuildPhase
BUILD_PHASE_MEASURING: BuildPhase
BUILD_PHASE_PUBLISHING: BuildPhase
BUILD_PHASE_READY: BuildPhase
BUILD_PHASE_FAILED: BuildPhase
BUILD_PHASE_CANCELLED: BuildPhase
BUILD_FAILURE_KIND_UNSPECIFIED: BuildFailureKind
BUILD_FAILURE_KIND_DETERMINISTIC: BuildFailureKind
BUILD_FAILURE_KIND_RESOURCE: BuildFailureKind
BUILD_FAILURE_KIND_INFRASTRUCTURE: BuildFailureKind
JOB_WAIT_UNSPECIFIED: JobWait
JOB_WAIT_NO_WORKER: JobWait
JOB_WAIT_WORKERS_BUSY: JobWait
JOB_WAIT_BACK_OFF: JobWait
JOB_WAIT_IN_LINE: JobWait

class BuildFailure(_message.Message):
    __slots__ = ("kind", "code", "message", "log_tail")
    KIND_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    LOG_TAIL_FIELD_NUMBER: _ClassVar[int]
    kind: BuildFailureKind
    code: str
    message: str
    log_tail: str
    def __init__(self, kind: _Optional[_Union[BuildFailureKind, str]] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., log_tail: _Optional[str] = ...) -> None: ...

class CompileRequest(_message.Message):
    __slots__ = ("model", "version", "fingerprint_json", "recipes", "force", "objective", "budget_s", "hardware_class", "priority", "after_event_id", "with_log")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_JSON_FIELD_NUMBER: _ClassVar[int]
    RECIPES_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    BUDGET_S_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_CLASS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    AFTER_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    WITH_LOG_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    fingerprint_json: bytes
    recipes: _containers.RepeatedScalarFieldContainer[str]
    force: bool
    objective: _types_pb2.Objective
    budget_s: float
    hardware_class: str
    priority: BuildPriority
    after_event_id: str
    with_log: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., fingerprint_json: _Optional[bytes] = ..., recipes: _Optional[_Iterable[str]] = ..., force: bool = ..., objective: _Optional[_Union[_types_pb2.Objective, str]] = ..., budget_s: _Optional[float] = ..., hardware_class: _Optional[str] = ..., priority: _Optional[_Union[BuildPriority, str]] = ..., after_event_id: _Optional[str] = ..., with_log: bool = ...) -> None: ...

class Build(_message.Message):
    __slots__ = ("artifact_key", "model", "version", "recipe", "hardware_class", "phase", "fraction", "message", "failure", "gate_json", "benchmark_json", "size_bytes", "attempts", "created_at_ms", "updated_at_ms", "cached", "layers_json", "log_tail", "priority")
    ARTIFACT_KEY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_CLASS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    GATE_JSON_FIELD_NUMBER: _ClassVar[int]
    BENCHMARK_JSON_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    LAYERS_JSON_FIELD_NUMBER: _ClassVar[int]
    LOG_TAIL_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    artifact_key: str
    model: str
    version: int
    recipe: _types_pb2.Recipe
    hardware_class: str
    phase: BuildPhase
    fraction: float
    message: str
    failure: BuildFailure
    gate_json: bytes
    benchmark_json: bytes
    size_bytes: int
    attempts: int
    created_at_ms: int
    updated_at_ms: int
    cached: bool
    layers_json: bytes
    log_tail: str
    priority: BuildPriority
    def __init__(self, artifact_key: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., recipe: _Optional[_Union[_types_pb2.Recipe, _Mapping]] = ..., hardware_class: _Optional[str] = ..., phase: _Optional[_Union[BuildPhase, str]] = ..., fraction: _Optional[float] = ..., message: _Optional[str] = ..., failure: _Optional[_Union[BuildFailure, _Mapping]] = ..., gate_json: _Optional[bytes] = ..., benchmark_json: _Optional[bytes] = ..., size_bytes: _Optional[int] = ..., attempts: _Optional[int] = ..., created_at_ms: _Optional[int] = ..., updated_at_ms: _Optional[int] = ..., cached: bool = ..., layers_json: _Optional[bytes] = ..., log_tail: _Optional[str] = ..., priority: _Optional[_Union[BuildPriority, str]] = ...) -> None: ...

class BuildEvent(_message.Message):
    __slots__ = ("event_id", "build", "builds")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    BUILD_FIELD_NUMBER: _ClassVar[int]
    BUILDS_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    build: Build
    builds: int
    def __init__(self, event_id: _Optional[str] = ..., build: _Optional[_Union[Build, _Mapping]] = ..., builds: _Optional[int] = ...) -> None: ...

class WatchBuildsRequest(_message.Message):
    __slots__ = ("artifact_keys", "after_event_id", "with_log")
    ARTIFACT_KEYS_FIELD_NUMBER: _ClassVar[int]
    AFTER_EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    WITH_LOG_FIELD_NUMBER: _ClassVar[int]
    artifact_keys: _containers.RepeatedScalarFieldContainer[str]
    after_event_id: str
    with_log: bool
    def __init__(self, artifact_keys: _Optional[_Iterable[str]] = ..., after_event_id: _Optional[str] = ..., with_log: bool = ...) -> None: ...

class GetBuildRequest(_message.Message):
    __slots__ = ("artifact_key",)
    ARTIFACT_KEY_FIELD_NUMBER: _ClassVar[int]
    artifact_key: str
    def __init__(self, artifact_key: _Optional[str] = ...) -> None: ...

class ListBuildsRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ListBuildsResponse(_message.Message):
    __slots__ = ("builds",)
    BUILDS_FIELD_NUMBER: _ClassVar[int]
    builds: _containers.RepeatedCompositeFieldContainer[Build]
    def __init__(self, builds: _Optional[_Iterable[_Union[Build, _Mapping]]] = ...) -> None: ...

class CancelBuildRequest(_message.Message):
    __slots__ = ("artifact_key",)
    ARTIFACT_KEY_FIELD_NUMBER: _ClassVar[int]
    artifact_key: str
    def __init__(self, artifact_key: _Optional[str] = ...) -> None: ...

class RebuildRequest(_message.Message):
    __slots__ = ("artifact_key", "priority")
    ARTIFACT_KEY_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    artifact_key: str
    priority: BuildPriority
    def __init__(self, artifact_key: _Optional[str] = ..., priority: _Optional[_Union[BuildPriority, str]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("hardware_class", "dead")
    HARDWARE_CLASS_FIELD_NUMBER: _ClassVar[int]
    DEAD_FIELD_NUMBER: _ClassVar[int]
    hardware_class: str
    dead: bool
    def __init__(self, hardware_class: _Optional[str] = ..., dead: bool = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "total", "now_ms")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    NOW_MS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    total: int
    now_ms: int
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., total: _Optional[int] = ..., now_ms: _Optional[int] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("build", "worker", "lease_until_ms", "wait", "why", "able_workers", "not_before_ms", "attempts")
    BUILD_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    LEASE_UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    ABLE_WORKERS_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_MS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    build: Build
    worker: str
    lease_until_ms: int
    wait: JobWait
    why: str
    able_workers: _containers.RepeatedScalarFieldContainer[str]
    not_before_ms: int
    attempts: _containers.RepeatedCompositeFieldContainer[Attempt]
    def __init__(self, build: _Optional[_Union[Build, _Mapping]] = ..., worker: _Optional[str] = ..., lease_until_ms: _Optional[int] = ..., wait: _Optional[_Union[JobWait, str]] = ..., why: _Optional[str] = ..., able_workers: _Optional[_Iterable[str]] = ..., not_before_ms: _Optional[int] = ..., attempts: _Optional[_Iterable[_Union[Attempt, _Mapping]]] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("worker", "began_ms", "ended_ms", "why")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    BEGAN_MS_FIELD_NUMBER: _ClassVar[int]
    ENDED_MS_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    worker: str
    began_ms: int
    ended_ms: int
    why: str
    def __init__(self, worker: _Optional[str] = ..., began_ms: _Optional[int] = ..., ended_ms: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class RetryJobsRequest(_message.Message):
    __slots__ = ("artifact_keys", "all_dead")
    ARTIFACT_KEYS_FIELD_NUMBER: _ClassVar[int]
    ALL_DEAD_FIELD_NUMBER: _ClassVar[int]
    artifact_keys: _containers.RepeatedScalarFieldContainer[str]
    all_dead: bool
    def __init__(self, artifact_keys: _Optional[_Iterable[str]] = ..., all_dead: bool = ...) -> None: ...

class RetryJobsResponse(_message.Message):
    __slots__ = ("builds",)
    BUILDS_FIELD_NUMBER: _ClassVar[int]
    builds: _containers.RepeatedCompositeFieldContainer[Build]
    def __init__(self, builds: _Optional[_Iterable[_Union[Build, _Mapping]]] = ...) -> None: ...

class ListWorkersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWorkersResponse(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    def __init__(self, workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ...) -> None: ...

class Worker(_message.Message):
    __slots__ = ("id", "hardware_class", "engines", "toolchain", "emulates", "concurrency", "draining", "last_seen_ms", "now_ms", "builds")
    class ToolchainEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_CLASS_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    TOOLCHAIN_FIELD_NUMBER: _ClassVar[int]
    EMULATES_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_MS_FIELD_NUMBER: _ClassVar[int]
    NOW_MS_FIELD_NUMBER: _ClassVar[int]
    BUILDS_FIELD_NUMBER: _ClassVar[int]
    id: str
    hardware_class: str
    engines: _containers.RepeatedScalarFieldContainer[str]
    toolchain: _containers.ScalarMap[str, str]
    emulates: _containers.RepeatedScalarFieldContainer[str]
    concurrency: int
    draining: bool
    last_seen_ms: int
    now_ms: int
    builds: _containers.RepeatedCompositeFieldContainer[Build]
    def __init__(self, id: _Optional[str] = ..., hardware_class: _Optional[str] = ..., engines: _Optional[_Iterable[str]] = ..., toolchain: _Optional[_Mapping[str, str]] = ..., emulates: _Optional[_Iterable[str]] = ..., concurrency: _Optional[int] = ..., draining: bool = ..., last_seen_ms: _Optional[int] = ..., now_ms: _Optional[int] = ..., builds: _Optional[_Iterable[_Union[Build, _Mapping]]] = ...) -> None: ...

class ListStaleRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class StaleTool(_message.Message):
    __slots__ = ("name", "built_with", "available")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BUILT_WITH_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    built_with: str
    available: str
    def __init__(self, name: _Optional[str] = ..., built_with: _Optional[str] = ..., available: _Optional[str] = ...) -> None: ...

class StaleArtifact(_message.Message):
    __slots__ = ("artifact_key", "model", "version", "recipe", "tools", "hardware_class", "successor")
    ARTIFACT_KEY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_CLASS_FIELD_NUMBER: _ClassVar[int]
    SUCCESSOR_FIELD_NUMBER: _ClassVar[int]
    artifact_key: str
    model: str
    version: int
    recipe: str
    tools: _containers.RepeatedCompositeFieldContainer[StaleTool]
    hardware_class: str
    successor: str
    def __init__(self, artifact_key: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., recipe: _Optional[str] = ..., tools: _Optional[_Iterable[_Union[StaleTool, _Mapping]]] = ..., hardware_class: _Optional[str] = ..., successor: _Optional[str] = ...) -> None: ...

class ListStaleResponse(_message.Message):
    __slots__ = ("artifacts",)
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    artifacts: _containers.RepeatedCompositeFieldContainer[StaleArtifact]
    def __init__(self, artifacts: _Optional[_Iterable[_Union[StaleArtifact, _Mapping]]] = ...) -> None: ...
