from dovetail.pb.v1 import compiler_pb2 as _compiler_pb2
from dovetail.pb.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChunkCodec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHUNK_CODEC_PLAIN: _ClassVar[ChunkCodec]
    CHUNK_CODEC_ZSTD: _ClassVar[ChunkCodec]
CHUNK_CODEC_PLAIN: ChunkCodec
CHUNK_CODEC_ZSTD: ChunkCodec

class NegotiateRequest(_message.Message):
    __slots__ = ("model", "version", "fingerprint_json", "objective", "accuracy_floor", "order_builds", "pin", "node")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_JSON_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FLOOR_FIELD_NUMBER: _ClassVar[int]
    ORDER_BUILDS_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    fingerprint_json: bytes
    objective: _types_pb2.Objective
    accuracy_floor: float
    order_builds: bool
    pin: str
    node: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., fingerprint_json: _Optional[bytes] = ..., objective: _Optional[_Union[_types_pb2.Objective, str]] = ..., accuracy_floor: _Optional[float] = ..., order_builds: bool = ..., pin: _Optional[str] = ..., node: _Optional[str] = ...) -> None: ...

class Assessment(_message.Message):
    __slots__ = ("artifact_key", "recipe", "verdict", "reasons", "rank", "measured", "benchmark_json", "prior_speed", "size_bytes", "gate_json")
    ARTIFACT_KEY_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    BENCHMARK_JSON_FIELD_NUMBER: _ClassVar[int]
    PRIOR_SPEED_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    GATE_JSON_FIELD_NUMBER: _ClassVar[int]
    artifact_key: str
    recipe: _types_pb2.Recipe
    verdict: _types_pb2.Verdict
    reasons: _containers.RepeatedCompositeFieldContainer[_types_pb2.Reason]
    rank: int
    measured: bool
    benchmark_json: bytes
    prior_speed: float
    size_bytes: int
    gate_json: bytes
    def __init__(self, artifact_key: _Optional[str] = ..., recipe: _Optional[_Union[_types_pb2.Recipe, _Mapping]] = ..., verdict: _Optional[_Union[_types_pb2.Verdict, str]] = ..., reasons: _Optional[_Iterable[_Union[_types_pb2.Reason, _Mapping]]] = ..., rank: _Optional[int] = ..., measured: bool = ..., benchmark_json: _Optional[bytes] = ..., prior_speed: _Optional[float] = ..., size_bytes: _Optional[int] = ..., gate_json: _Optional[bytes] = ...) -> None: ...

class BuildOrder(_message.Message):
    __slots__ = ("artifact_key", "recipe", "phase", "why", "needs_worker")
    ARTIFACT_KEY_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    NEEDS_WORKER_FIELD_NUMBER: _ClassVar[int]
    artifact_key: str
    recipe: _types_pb2.Recipe
    phase: _compiler_pb2.BuildPhase
    why: str
    needs_worker: str
    def __init__(self, artifact_key: _Optional[str] = ..., recipe: _Optional[_Union[_types_pb2.Recipe, _Mapping]] = ..., phase: _Optional[_Union[_compiler_pb2.BuildPhase, str]] = ..., why: _Optional[str] = ..., needs_worker: _Optional[str] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("model", "version", "hardware_class", "hardware_label", "choice", "manifest_digest", "assessments", "better", "basis", "objective")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_CLASS_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_LABEL_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ASSESSMENTS_FIELD_NUMBER: _ClassVar[int]
    BETTER_FIELD_NUMBER: _ClassVar[int]
    BASIS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    hardware_class: str
    hardware_label: str
    choice: str
    manifest_digest: str
    assessments: _containers.RepeatedCompositeFieldContainer[Assessment]
    better: _containers.RepeatedCompositeFieldContainer[BuildOrder]
    basis: str
    objective: _types_pb2.Objective
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., hardware_class: _Optional[str] = ..., hardware_label: _Optional[str] = ..., choice: _Optional[str] = ..., manifest_digest: _Optional[str] = ..., assessments: _Optional[_Iterable[_Union[Assessment, _Mapping]]] = ..., better: _Optional[_Iterable[_Union[BuildOrder, _Mapping]]] = ..., basis: _Optional[str] = ..., objective: _Optional[_Union[_types_pb2.Objective, str]] = ...) -> None: ...

class GetManifestRequest(_message.Message):
    __slots__ = ("artifact_key", "known_digest")
    ARTIFACT_KEY_FIELD_NUMBER: _ClassVar[int]
    KNOWN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    artifact_key: str
    known_digest: str
    def __init__(self, artifact_key: _Optional[str] = ..., known_digest: _Optional[str] = ...) -> None: ...

class ManifestReply(_message.Message):
    __slots__ = ("manifest_json", "digest", "benchmarks_json", "envelope_json")
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BENCHMARKS_JSON_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_JSON_FIELD_NUMBER: _ClassVar[int]
    manifest_json: bytes
    digest: str
    benchmarks_json: _containers.RepeatedScalarFieldContainer[bytes]
    envelope_json: bytes
    def __init__(self, manifest_json: _Optional[bytes] = ..., digest: _Optional[str] = ..., benchmarks_json: _Optional[_Iterable[bytes]] = ..., envelope_json: _Optional[bytes] = ...) -> None: ...

class FetchChunksRequest(_message.Message):
    __slots__ = ("digests", "piece_bytes", "max_bytes_per_s", "as_stored", "first_offset", "first_codec")
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    PIECE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    AS_STORED_FIELD_NUMBER: _ClassVar[int]
    FIRST_OFFSET_FIELD_NUMBER: _ClassVar[int]
    FIRST_CODEC_FIELD_NUMBER: _ClassVar[int]
    digests: _containers.RepeatedScalarFieldContainer[str]
    piece_bytes: int
    max_bytes_per_s: int
    as_stored: bool
    first_offset: int
    first_codec: ChunkCodec
    def __init__(self, digests: _Optional[_Iterable[str]] = ..., piece_bytes: _Optional[int] = ..., max_bytes_per_s: _Optional[int] = ..., as_stored: bool = ..., first_offset: _Optional[int] = ..., first_codec: _Optional[_Union[ChunkCodec, str]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("digest", "codec", "data", "size_bytes", "offset", "encoded_bytes")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ENCODED_BYTES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    codec: ChunkCodec
    data: bytes
    size_bytes: int
    offset: int
    encoded_bytes: int
    def __init__(self, digest: _Optional[str] = ..., codec: _Optional[_Union[ChunkCodec, str]] = ..., data: _Optional[bytes] = ..., size_bytes: _Optional[int] = ..., offset: _Optional[int] = ..., encoded_bytes: _Optional[int] = ...) -> None: ...

class ReportBenchmarkRequest(_message.Message):
    __slots__ = ("artifact_key", "benchmark_json")
    ARTIFACT_KEY_FIELD_NUMBER: _ClassVar[int]
    BENCHMARK_JSON_FIELD_NUMBER: _ClassVar[int]
    artifact_key: str
    benchmark_json: bytes
    def __init__(self, artifact_key: _Optional[str] = ..., benchmark_json: _Optional[bytes] = ...) -> None: ...

class ReportBenchmarkResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListArtifactsRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ListArtifactsResponse(_message.Message):
    __slots__ = ("artifacts",)
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    artifacts: _containers.RepeatedCompositeFieldContainer[ManifestReply]
    def __init__(self, artifacts: _Optional[_Iterable[_Union[ManifestReply, _Mapping]]] = ...) -> None: ...
