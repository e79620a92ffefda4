from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StoreProgress(_message.Message):
    __slots__ = ("phase", "done", "total", "bytes", "position")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    phase: str
    done: int
    total: int
    bytes: int
    position: str
    def __init__(self, phase: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., bytes: _Optional[int] = ..., position: _Optional[str] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsEvent(_message.Message):
    __slots__ = ("progress", "stats")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    progress: StoreProgress
    stats: StoreStats
    def __init__(self, progress: _Optional[_Union[StoreProgress, _Mapping]] = ..., stats: _Optional[_Union[StoreStats, _Mapping]] = ...) -> None: ...

class StoreStats(_message.Message):
    __slots__ = ("durable", "trash", "hot", "documents", "referenced", "retired", "unreferenced", "missing_chunks", "logical_bytes", "distinct_bytes", "stored_bytes", "models", "tenants", "unreadable_documents")
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    TRASH_FIELD_NUMBER: _ClassVar[int]
    HOT_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    REFERENCED_FIELD_NUMBER: _ClassVar[int]
    RETIRED_FIELD_NUMBER: _ClassVar[int]
    UNREFERENCED_FIELD_NUMBER: _ClassVar[int]
    MISSING_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    LOGICAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISTINCT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    durable: TierStats
    trash: TierStats
    hot: HotTierStats
    documents: _containers.RepeatedCompositeFieldContainer[DocumentStats]
    referenced: TierStats
    retired: TierStats
    unreferenced: TierStats
    missing_chunks: int
    logical_bytes: int
    distinct_bytes: int
    stored_bytes: int
    models: _containers.RepeatedCompositeFieldContainer[ModelStats]
    tenants: _containers.RepeatedCompositeFieldContainer[TenantUsage]
    unreadable_documents: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, durable: _Optional[_Union[TierStats, _Mapping]] = ..., trash: _Optional[_Union[TierStats, _Mapping]] = ..., hot: _Optional[_Union[HotTierStats, _Mapping]] = ..., documents: _Optional[_Iterable[_Union[DocumentStats, _Mapping]]] = ..., referenced: _Optional[_Union[TierStats, _Mapping]] = ..., retired: _Optional[_Union[TierStats, _Mapping]] = ..., unreferenced: _Optional[_Union[TierStats, _Mapping]] = ..., missing_chunks: _Optional[int] = ..., logical_bytes: _Optional[int] = ..., distinct_bytes: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelStats, _Mapping]]] = ..., tenants: _Optional[_Iterable[_Union[TenantUsage, _Mapping]]] = ..., unreadable_documents: _Optional[_Iterable[str]] = ...) -> None: ...

class TierStats(_message.Message):
    __slots__ = ("chunks", "bytes")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    chunks: int
    bytes: int
    def __init__(self, chunks: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class HotTierStats(_message.Message):
    __slots__ = ("address", "chunks", "used_memory_bytes", "max_memory_bytes", "policy", "evicted_keys", "hits", "misses", "unavailable")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    USED_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    EVICTED_KEYS_FIELD_NUMBER: _ClassVar[int]
    HITS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    address: str
    chunks: int
    used_memory_bytes: int
    max_memory_bytes: int
    policy: str
    evicted_keys: int
    hits: int
    misses: int
    unavailable: str
    def __init__(self, address: _Optional[str] = ..., chunks: _Optional[int] = ..., used_memory_bytes: _Optional[int] = ..., max_memory_bytes: _Optional[int] = ..., policy: _Optional[str] = ..., evicted_keys: _Optional[int] = ..., hits: _Optional[int] = ..., misses: _Optional[int] = ..., unavailable: _Optional[str] = ...) -> None: ...

class DocumentStats(_message.Message):
    __slots__ = ("kind", "documents")
    KIND_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    documents: int
    def __init__(self, kind: _Optional[str] = ..., documents: _Optional[int] = ...) -> None: ...

class ModelStats(_message.Message):
    __slots__ = ("model", "tenant", "versions", "artifacts", "model_bytes", "artifact_bytes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    model: str
    tenant: str
    versions: int
    artifacts: int
    model_bytes: int
    artifact_bytes: int
    def __init__(self, model: _Optional[str] = ..., tenant: _Optional[str] = ..., versions: _Optional[int] = ..., artifacts: _Optional[int] = ..., model_bytes: _Optional[int] = ..., artifact_bytes: _Optional[int] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("sample", "after", "bytes_per_s")
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    sample: float
    after: str
    bytes_per_s: float
    def __init__(self, sample: _Optional[float] = ..., after: _Optional[str] = ..., bytes_per_s: _Optional[float] = ...) -> None: ...

class VerifyEvent(_message.Message):
    __slots__ = ("progress", "report")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    progress: StoreProgress
    report: VerifyReport
    def __init__(self, progress: _Optional[_Union[StoreProgress, _Mapping]] = ..., report: _Optional[_Union[VerifyReport, _Mapping]] = ...) -> None: ...

class VerifyReport(_message.Message):
    __slots__ = ("chunks", "bytes", "documents", "healed", "damages", "lost")
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    HEALED_FIELD_NUMBER: _ClassVar[int]
    DAMAGES_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    chunks: int
    bytes: int
    documents: int
    healed: int
    damages: _containers.RepeatedCompositeFieldContainer[Damage]
    lost: int
    def __init__(self, chunks: _Optional[int] = ..., bytes: _Optional[int] = ..., documents: _Optional[int] = ..., healed: _Optional[int] = ..., damages: _Optional[_Iterable[_Union[Damage, _Mapping]]] = ..., lost: _Optional[int] = ...) -> None: ...

class Damage(_message.Message):
    __slots__ = ("kind", "name", "what", "healed", "owners", "advice")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    HEALED_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    what: str
    healed: bool
    owners: _containers.RepeatedCompositeFieldContainer[Owner]
    advice: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., what: _Optional[str] = ..., healed: bool = ..., owners: _Optional[_Iterable[_Union[Owner, _Mapping]]] = ..., advice: _Optional[str] = ...) -> None: ...

class Owner(_message.Message):
    __slots__ = ("model", "version", "artifact_key", "recipe", "retired")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_KEY_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    RETIRED_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    artifact_key: str
    recipe: str
    retired: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., artifact_key: _Optional[str] = ..., recipe: _Optional[str] = ..., retired: bool = ...) -> None: ...

class CollectRequest(_message.Message):
    __slots__ = ("dry_run",)
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    def __init__(self, dry_run: bool = ...) -> None: ...

class CollectEvent(_message.Message):
    __slots__ = ("progress", "report")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    progress: StoreProgress
    report: CollectReport
    def __init__(self, progress: _Optional[_Union[StoreProgress, _Mapping]] = ..., report: _Optional[_Union[CollectReport, _Mapping]] = ...) -> None: ...

class CollectReport(_message.Message):
    __slots__ = ("dry_run", "trashed", "purged", "restored", "kept_young", "waiting", "retired_dropped", "retired_kept", "grace_s", "took_s")
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    TRASHED_FIELD_NUMBER: _ClassVar[int]
    PURGED_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FIELD_NUMBER: _ClassVar[int]
    KEPT_YOUNG_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RETIRED_DROPPED_FIELD_NUMBER: _ClassVar[int]
    RETIRED_KEPT_FIELD_NUMBER: _ClassVar[int]
    GRACE_S_FIELD_NUMBER: _ClassVar[int]
    TOOK_S_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    trashed: TierStats
    purged: TierStats
    restored: TierStats
    kept_young: TierStats
    waiting: TierStats
    retired_dropped: int
    retired_kept: int
    grace_s: float
    took_s: float
    def __init__(self, dry_run: bool = ..., trashed: _Optional[_Union[TierStats, _Mapping]] = ..., purged: _Optional[_Union[TierStats, _Mapping]] = ..., restored: _Optional[_Union[TierStats, _Mapping]] = ..., kept_young: _Optional[_Union[TierStats, _Mapping]] = ..., waiting: _Optional[_Union[TierStats, _Mapping]] = ..., retired_dropped: _Optional[int] = ..., retired_kept: _Optional[int] = ..., grace_s: _Optional[float] = ..., took_s: _Optional[float] = ...) -> None: ...

class RebuildIndexRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RebuildIndexEvent(_message.Message):
    __slots__ = ("progress", "report")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    progress: StoreProgress
    report: RebuildIndexReport
    def __init__(self, progress: _Optional[_Union[StoreProgress, _Mapping]] = ..., report: _Optional[_Union[RebuildIndexReport, _Mapping]] = ...) -> None: ...

class RebuildIndexReport(_message.Message):
    __slots__ = ("documents", "restored", "unreadable", "only_in_index", "took_s")
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    ONLY_IN_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOOK_S_FIELD_NUMBER: _ClassVar[int]
    documents: int
    restored: int
    unreadable: _containers.RepeatedScalarFieldContainer[str]
    only_in_index: _containers.RepeatedScalarFieldContainer[str]
    took_s: float
    def __init__(self, documents: _Optional[int] = ..., restored: _Optional[int] = ..., unreadable: _Optional[_Iterable[str]] = ..., only_in_index: _Optional[_Iterable[str]] = ..., took_s: _Optional[float] = ...) -> None: ...

class SetQuotaRequest(_message.Message):
    __slots__ = ("tenant", "limit_bytes")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    limit_bytes: int
    def __init__(self, tenant: _Optional[str] = ..., limit_bytes: _Optional[int] = ...) -> None: ...

class ListQuotasRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListQuotasResponse(_message.Message):
    __slots__ = ("tenants",)
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    tenants: _containers.RepeatedCompositeFieldContainer[TenantUsage]
    def __init__(self, tenants: _Optional[_Iterable[_Union[TenantUsage, _Mapping]]] = ...) -> None: ...

class TenantUsage(_message.Message):
    __slots__ = ("tenant", "used_bytes", "reserved_bytes", "limit_bytes", "own_limit")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    OWN_LIMIT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    used_bytes: int
    reserved_bytes: int
    limit_bytes: int
    own_limit: bool
    def __init__(self, tenant: _Optional[str] = ..., used_bytes: _Optional[int] = ..., reserved_bytes: _Optional[int] = ..., limit_bytes: _Optional[int] = ..., own_limit: bool = ...) -> None: ...
