from dovetail.pb.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FileRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FILE_ROLE_UNSPECIFIED: _ClassVar[FileRole]
    FILE_ROLE_MODEL: _ClassVar[FileRole]
    FILE_ROLE_EXTERNAL_DATA: _ClassVar[FileRole]
    FILE_ROLE_CALIBRATION: _ClassVar[FileRole]
    FILE_ROLE_VALIDATION: _ClassVar[FileRole]
    FILE_ROLE_WEIGHTS: _ClassVar[FileRole]
    FILE_ROLE_PROGRAM: _ClassVar[FileRole]
    FILE_ROLE_REFERENCE: _ClassVar[FileRole]
FILE_ROLE_UNSPECIFIED: FileRole
FILE_ROLE_MODEL: FileRole
FILE_ROLE_EXTERNAL_DATA: FileRole
FILE_ROLE_CALIBRATION: FileRole
FILE_ROLE_VALIDATION: FileRole
FILE_ROLE_WEIGHTS: FileRole
FILE_ROLE_PROGRAM: FileRole
FILE_ROLE_REFERENCE: FileRole

class PushFile(_message.Message):
    __slots__ = ("role", "name", "size_bytes", "sha256")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    role: FileRole
    name: str
    size_bytes: int
    sha256: str
    def __init__(self, role: _Optional[_Union[FileRole, str]] = ..., name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class AccuracyPolicy(_message.Message):
    __slots__ = ("task", "label_array", "max_metric_drop", "output", "tolerances")
    class TolerancesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TASK_FIELD_NUMBER: _ClassVar[int]
    LABEL_ARRAY_FIELD_NUMBER: _ClassVar[int]
    MAX_METRIC_DROP_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    TOLERANCES_FIELD_NUMBER: _ClassVar[int]
    task: str
    label_array: str
    max_metric_drop: float
    output: str
    tolerances: _containers.ScalarMap[str, float]
    def __init__(self, task: _Optional[str] = ..., label_array: _Optional[str] = ..., max_metric_drop: _Optional[float] = ..., output: _Optional[str] = ..., tolerances: _Optional[_Mapping[str, float]] = ...) -> None: ...

class DimRange(_message.Message):
    __slots__ = ("input", "axis", "min", "usual", "max")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    AXIS_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    USUAL_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    input: str
    axis: int
    min: int
    usual: int
    max: int
    def __init__(self, input: _Optional[str] = ..., axis: _Optional[int] = ..., min: _Optional[int] = ..., usual: _Optional[int] = ..., max: _Optional[int] = ...) -> None: ...

class OperatorSupport(_message.Message):
    __slots__ = ("engine", "level", "operators")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    OPERATORS_FIELD_NUMBER: _ClassVar[int]
    engine: str
    level: str
    operators: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, engine: _Optional[str] = ..., level: _Optional[str] = ..., operators: _Optional[_Iterable[str]] = ...) -> None: ...

class PushHeader(_message.Message):
    __slots__ = ("name", "files", "policy", "ranges", "expected_inputs", "expected_outputs", "tenant")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_INPUTS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    name: str
    files: _containers.RepeatedCompositeFieldContainer[PushFile]
    policy: AccuracyPolicy
    ranges: _containers.RepeatedCompositeFieldContainer[DimRange]
    expected_inputs: _containers.RepeatedCompositeFieldContainer[_types_pb2.TensorSpec]
    expected_outputs: _containers.RepeatedCompositeFieldContainer[_types_pb2.TensorSpec]
    tenant: str
    def __init__(self, name: _Optional[str] = ..., files: _Optional[_Iterable[_Union[PushFile, _Mapping]]] = ..., policy: _Optional[_Union[AccuracyPolicy, _Mapping]] = ..., ranges: _Optional[_Iterable[_Union[DimRange, _Mapping]]] = ..., expected_inputs: _Optional[_Iterable[_Union[_types_pb2.TensorSpec, _Mapping]]] = ..., expected_outputs: _Optional[_Iterable[_Union[_types_pb2.TensorSpec, _Mapping]]] = ..., tenant: _Optional[str] = ...) -> None: ...

class PushModelRequest(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: PushHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[PushHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PushModelResponse(_message.Message):
    __slots__ = ("model", "created", "notes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    model: Model
    created: bool
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., created: bool = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "model_digest", "file_digest", "size_bytes", "opset", "ir_version", "inputs", "outputs", "calibration_samples", "validation_samples", "labelled", "policy", "aliases", "created_at_ms", "parameter_bytes", "operators", "support", "ranges", "notes", "program", "export_check")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FILE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OPSET_FIELD_NUMBER: _ClassVar[int]
    IR_VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    LABELLED_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_BYTES_FIELD_NUMBER: _ClassVar[int]
    OPERATORS_FIELD_NUMBER: _ClassVar[int]
    SUPPORT_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    PROGRAM_FIELD_NUMBER: _ClassVar[int]
    EXPORT_CHECK_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    model_digest: str
    file_digest: str
    size_bytes: int
    opset: int
    ir_version: int
    inputs: _containers.RepeatedCompositeFieldContainer[_types_pb2.TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[_types_pb2.TensorSpec]
    calibration_samples: int
    validation_samples: int
    labelled: bool
    policy: AccuracyPolicy
    aliases: _containers.RepeatedScalarFieldContainer[str]
    created_at_ms: int
    parameter_bytes: int
    operators: _containers.RepeatedScalarFieldContainer[str]
    support: _containers.RepeatedCompositeFieldContainer[OperatorSupport]
    ranges: _containers.RepeatedCompositeFieldContainer[DimRange]
    notes: _containers.RepeatedScalarFieldContainer[str]
    program: str
    export_check: ExportCheck
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., model_digest: _Optional[str] = ..., file_digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., opset: _Optional[int] = ..., ir_version: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[_types_pb2.TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[_types_pb2.TensorSpec, _Mapping]]] = ..., calibration_samples: _Optional[int] = ..., validation_samples: _Optional[int] = ..., labelled: bool = ..., policy: _Optional[_Union[AccuracyPolicy, _Mapping]] = ..., aliases: _Optional[_Iterable[str]] = ..., created_at_ms: _Optional[int] = ..., parameter_bytes: _Optional[int] = ..., operators: _Optional[_Iterable[str]] = ..., support: _Optional[_Iterable[_Union[OperatorSupport, _Mapping]]] = ..., ranges: _Optional[_Iterable[_Union[DimRange, _Mapping]]] = ..., notes: _Optional[_Iterable[str]] = ..., program: _Optional[str] = ..., export_check: _Optional[_Union[ExportCheck, _Mapping]] = ...) -> None: ...

class ExportCheck(_message.Message):
    __slots__ = ("samples", "min_cosine", "snr_db", "max_error", "exported_by")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MIN_COSINE_FIELD_NUMBER: _ClassVar[int]
    SNR_DB_FIELD_NUMBER: _ClassVar[int]
    MAX_ERROR_FIELD_NUMBER: _ClassVar[int]
    EXPORTED_BY_FIELD_NUMBER: _ClassVar[int]
    samples: int
    min_cosine: float
    snr_db: float
    max_error: float
    exported_by: str
    def __init__(self, samples: _Optional[int] = ..., min_cosine: _Optional[float] = ..., snr_db: _Optional[float] = ..., max_error: _Optional[float] = ..., exported_by: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name", "version", "alias")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    alias: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., alias: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class SetAliasRequest(_message.Message):
    __slots__ = ("name", "alias", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    alias: str
    version: int
    def __init__(self, name: _Optional[str] = ..., alias: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class DeleteModelRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class DeleteModelResponse(_message.Message):
    __slots__ = ("versions_deleted",)
    VERSIONS_DELETED_FIELD_NUMBER: _ClassVar[int]
    versions_deleted: int
    def __init__(self, versions_deleted: _Optional[int] = ...) -> None: ...
