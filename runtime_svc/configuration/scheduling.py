# SPDX-License-Identifier: Apache-2.0
"""From the scheduling parts of a configuration's message to values: dynamic batching, sequences, pipelines.

What lives here is the meaning and the bounds of those fields; whether a pipeline's graph holds together is
`pipelines.plan`'s business, and what a configuration looks like as a whole `reading`'s.

Source: Triton Inference Server, model_config.proto and the checks and texts of its model configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from dovetail.errors import InvalidInputError
from dovetail.pb import oip
from dovetail.tensor import NUMPY_DTYPES
from runtime_svc.configuration.serving_config import (
    BatchInput,
    BatchInputKind,
    ControlInput,
    ControlKind,
    DynamicBatching,
    Pipeline,
    PipelineStep,
    QueuePolicy,
    SequenceBatching,
    SequenceState,
    TimeoutAction,
)

ReadFile: TypeAlias = Callable[[str], bytes]
"""Content of a file of the model's folder, by its path there; raises InvalidInputError."""

MAX_WAIT_US = 1 << 40  # 12 days: nothing that anyone means, and it can be added to a clock
MAX_PRIORITY_LEVELS = 1024
MAX_STEPS = 256
MAX_IN_FLIGHT = 1 << 20
MAX_ZERO_BYTES = 64 << 20
"""Of a first state that is made here, from a few words of a caller's."""

_DEFAULT_IDLE_US = 1_000_000
_CORRID_TYPES = ("UINT64", "INT64", "UINT32", "INT32", "BYTES")


def datatype_name(number: int, where: str) -> str:
    """Name of the protocol for a datatype of a configuration.

    Raises:
        InvalidInputError: There is no such type, or none was given.
    """
    names = oip.DataType.DESCRIPTOR.values_by_number
    word = names[number].name.removeprefix("TYPE_") if number in names else str(number)
    name = "BYTES" if word == "STRING" else word
    if name not in NUMPY_DTYPES:
        raise InvalidInputError(f"{where}: must specify 'data_type', such as TYPE_FP32")
    return name


def bounded(value: int, where: str, *, high: int, low: int = 0) -> int:
    """The value.

    Raises:
        InvalidInputError: It is not within the bounds.
    """
    if not low <= value <= high:
        raise InvalidInputError(f"{where}: expected a whole number from {low} to {high}, got {value}")
    return value


def read_batching(message: oip.ModelDynamicBatching, name: str, max_batch_size: int) -> DynamicBatching:
    """Dynamic batching of model `name`.

    Raises:
        InvalidInputError: Values contradict each other or are out of bounds.
    """
    where = "dynamic_batching"
    levels = bounded(message.priority_levels, f"{where}.priority_levels", high=MAX_PRIORITY_LEVELS)
    if levels and not 1 <= message.default_priority_level <= levels:
        raise InvalidInputError(f"default priority level must be in range [1, {levels}] for {name}")
    if not all(1 <= level <= levels for level in message.priority_queue_policy):
        raise InvalidInputError(f"priority queue policy must have priority level in range [1, {levels}] for {name}")
    batching = DynamicBatching(
        preferred_batch_sizes=_preferred(message.preferred_batch_size, "dynamic batching", name, max_batch_size),
        max_queue_delay_us=_wait(message.max_queue_delay_microseconds, f"{where}.max_queue_delay_microseconds"),
        preserve_ordering=message.preserve_ordering,
        priority_levels=levels,
        default_priority_level=message.default_priority_level if levels else 0,
        default_policy=(
            _policy(message.default_queue_policy, f"{where}.default_queue_policy")
            if message.HasField("default_queue_policy")
            else QueuePolicy()
        ),
        priority_policies={
            level: _policy(policy, f"{where}.priority_queue_policy[{level}]")
            for level, policy in sorted(message.priority_queue_policy.items())
        },
    )
    if batching.preserve_ordering:
        _check_ordering(batching, name)
    return batching


def read_sequences(
    message: oip.ModelSequenceBatching, name: str, max_batch_size: int, read_file: ReadFile
) -> SequenceBatching:
    """Sequence batching of model `name`; direct if no strategy is named.

    Raises:
        InvalidInputError: Values contradict each other or are out of bounds, or an initial state's file is not there.
    """
    where, direct, oldest = "sequence_batching", message.direct, message.oldest
    is_oldest = message.WhichOneof("strategy_choice") == "oldest"
    delay = oldest.max_queue_delay_microseconds if is_oldest else direct.max_queue_delay_microseconds
    candidates = oldest.max_candidate_sequences if is_oldest else 0
    utilization = 0.0 if is_oldest else direct.minimum_slot_utilization
    if not 0.0 <= utilization <= 1.0:
        raise InvalidInputError(f"{where}.direct.minimum_slot_utilization: expected 0 to 1, got {utilization}")
    if message.iterative_sequence and (message.control_input or message.state):
        raise InvalidInputError(
            f"{where}.iterative_sequence: does not go with control_input and state; the model is told with each request"
            " which turn it is, and keeps what it must remember there"
        )
    return SequenceBatching(
        oldest=is_oldest,
        max_idle_us=_wait(message.max_sequence_idle_microseconds, f"{where}.max_sequence_idle_microseconds")
        or _DEFAULT_IDLE_US,
        controls=tuple(_controls(message.control_input, name)),
        states=tuple(_state(state, f"{where}.state[{i}]", read_file) for i, state in enumerate(message.state)),
        max_candidates=bounded(candidates, f"{where}.oldest.max_candidate_sequences", high=1 << 20) or 1,
        max_queue_delay_us=_wait(delay, f"{where}.max_queue_delay_microseconds"),
        preferred_batch_sizes=_preferred(oldest.preferred_batch_size, "sequence batching", name, max_batch_size)
        if is_oldest
        else (),
        minimum_slot_utilization=utilization,
        preserve_ordering=is_oldest and oldest.preserve_ordering,
        iterative=message.iterative_sequence,
    )


def read_pipeline(message: oip.ModelEnsembling, name: str) -> Pipeline:
    """The graph of pipeline `name`, its steps complete, but not whether they fit together.

    Raises:
        InvalidInputError: There is no step, too many, or one that lacks something.
    """
    if not message.step:
        raise InvalidInputError(f"must specify 'step' for ensemble '{name}'")
    if len(message.step) > MAX_STEPS:
        raise InvalidInputError(f"ensemble '{name}' has {len(message.step)} steps; the limit is {MAX_STEPS}")
    steps = []
    for index, step in enumerate(message.step):
        for field in ("model_name", "input_map", "output_map"):
            if not getattr(step, field):
                raise InvalidInputError(f"must specify '{field}' in step {index} of ensemble '{name}'")
        if step.model_version < -1:
            raise InvalidInputError(f"ensemble_scheduling.step[{index}].model_version: expected -1 or a version")
        version = max(step.model_version, 0)
        steps.append(PipelineStep(step.model_name, version, dict(step.input_map), dict(step.output_map)))
    limit = bounded(message.max_inflight_requests, "ensemble_scheduling.max_inflight_requests", high=MAX_IN_FLIGHT)
    return Pipeline(tuple(steps), max_in_flight=limit)


def read_batch_inputs(messages: Sequence[oip.BatchInput]) -> tuple[BatchInput, ...]:
    """Inputs that the batcher makes.

    Raises:
        InvalidInputError: One lacks something, or is of a kind that is not made here.
    """
    made = []
    for index, message in enumerate(messages):
        where, kinds = f"batch_input[{index}]", message.Kind.DESCRIPTOR.values_by_number
        word = kinds[message.kind].name if message.kind in kinds else str(message.kind)
        if word not in list(BatchInputKind):
            raise InvalidInputError(f"{where}.kind: expected one of {', '.join(BatchInputKind)}, got {word}")
        if len(message.target_name) != 1 or len(message.source_input) != 1:
            raise InvalidInputError(f"{where}: expected one 'target_name' and one 'source_input'")
        datatype = datatype_name(message.data_type, where)
        if datatype not in ("INT32", "FP32"):
            raise InvalidInputError(f"{where}.data_type: expected TYPE_INT32 or TYPE_FP32, got {datatype}")
        made.append(BatchInput(BatchInputKind(word), message.target_name[0], message.source_input[0], datatype))
    return tuple(made)


def _preferred(sizes: Iterable[int], what: str, name: str, max_batch_size: int) -> tuple[int, ...]:
    word = "preferred size" if what == "dynamic batching" else "preferred batch size"
    for size in sizes:
        if size <= 0:
            raise InvalidInputError(f"{what} {word} must be positive for {name}")
        if size > max_batch_size:
            raise InvalidInputError(f"{what} {word} must be <= max batch size for {name}")
    return tuple(sorted(set(sizes)))


def _wait(value_us: int, where: str) -> int:
    return bounded(value_us, where, high=MAX_WAIT_US)


def _policy(message: oip.ModelQueuePolicy, where: str) -> QueuePolicy:
    actions: Mapping[int, TimeoutAction] = {0: TimeoutAction.REJECT, 1: TimeoutAction.DELAY}
    if message.timeout_action not in actions:
        raise InvalidInputError(f"{where}.timeout_action: expected REJECT or DELAY")
    return QueuePolicy(
        timeout_action=actions[message.timeout_action],
        default_timeout_us=_wait(message.default_timeout_microseconds, f"{where}.default_timeout_microseconds"),
        allow_timeout_override=message.allow_timeout_override,
        max_queue_size=message.max_queue_size,
    )


def _check_ordering(batching: DynamicBatching, name: str) -> None:
    if batching.priority_levels > 1:
        raise InvalidInputError(f"Only one priority level is allowed when 'preserve_ordering' is true for {name}")
    for policy in (batching.default_policy, *batching.priority_policies.values()):
        if policy.default_timeout_us and policy.timeout_action is TimeoutAction.DELAY:
            raise InvalidInputError(
                f"Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for {name}"
            )


def _controls(inputs: Sequence[oip.ModelSequenceBatching.ControlInput], name: str) -> Iterable[ControlInput]:
    seen: set[str] = set()
    for index, entry in enumerate(inputs):
        where = f"sequence_batching.control_input[{index}]"
        if not entry.name or entry.name in seen:
            raise InvalidInputError(f"{where}: must specify 'name', another one for each control input, for {name}")
        if len(entry.control) != 1:
            raise InvalidInputError(f"{where}: expected one control, got {len(entry.control)}")
        seen.add(entry.name)
        yield _control(entry.name, entry.control[0], f"{where}.control[0]")


def _control(name: str, message: oip.ModelSequenceBatching.Control, where: str) -> ControlInput:
    kinds = message.Kind.DESCRIPTOR.values_by_number
    if message.kind not in kinds:
        raise InvalidInputError(f"{where}.kind: expected one of {', '.join(ControlKind)}")
    kind = ControlKind(kinds[message.kind].name)
    if kind is ControlKind.CORRID:
        datatype = datatype_name(message.data_type, where)
        if datatype not in _CORRID_TYPES:
            raise InvalidInputError(
                f"unexpected data type for control {kind} of {name}. Allowed data types are TYPE_UINT64, TYPE_INT64,"
                " TYPE_UINT32, TYPE_INT32 and TYPE_STRING"
            )
        return ControlInput(name, kind, datatype)
    given = [
        (datatype, tuple(values))
        for datatype, values in (
            ("INT32", message.int32_false_true),
            ("FP32", message.fp32_false_true),
            ("BOOL", message.bool_false_true),
        )
        if values
    ]
    if len(given) != 1 or len(given[0][1]) != 2:
        raise InvalidInputError(
            f"{where}: expected two values in one of 'int32_false_true', 'fp32_false_true', 'bool_false_true'"
        )
    datatype, (no, yes) = given[0]
    return ControlInput(name, kind, datatype, (no, yes))


def _state(message: oip.ModelSequenceBatching.State, where: str, read_file: ReadFile) -> SequenceState:
    if not message.input_name or not message.output_name:
        raise InvalidInputError(f"{where}: must specify 'input_name' and 'output_name'")
    datatype, dims = datatype_name(message.data_type, where), tuple(message.dims)
    if any(dim < 1 and dim != -1 for dim in dims):
        raise InvalidInputError(f"{where}.dims: expected whole numbers above 0, or -1, got {list(dims)[:64]}")
    if len(message.initial_state) > 1:
        raise InvalidInputError(f"{where}.initial_state: expected one, got {len(message.initial_state)}")
    initial = None
    for start in message.initial_state:
        if start.data_type != message.data_type or not _fills(tuple(start.dims), dims):
            raise InvalidInputError(
                f"{where}.initial_state[0]: expected data_type and dims as of the state, without -1"
            )
        if start.WhichOneof("state_data") == "data_file" or -1 in dims:  # zeros of a fixed shape are the default
            initial = _initial(start, datatype, f"{where}.initial_state[0]", read_file)
    return SequenceState(message.input_name, message.output_name, datatype, dims, initial)


def _initial(
    message: oip.ModelSequenceBatching.InitialState, datatype: str, where: str, read_file: ReadFile
) -> bytes | None:
    if message.WhichOneof("state_data") == "data_file":
        return read_file(f"initial_state/{message.data_file}")
    size = NUMPY_DTYPES[datatype].itemsize
    for dim in message.dims:
        size *= dim
    if size > MAX_ZERO_BYTES or datatype == "BYTES":
        raise InvalidInputError(f"{where}: zero_data of {size} bytes of {datatype} cannot be made; name a data_file")
    return bytes(size)


def _fills(got: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(got) == len(wanted) and all(dim > 0 and want in (-1, dim) for dim, want in zip(got, wanted, strict=True))
