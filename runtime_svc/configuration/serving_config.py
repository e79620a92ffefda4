# SPDX-License-Identifier: Apache-2.0
"""How a model is served: batching, queueing, sequences, pipelines, instances, caching. Values only.

The words and meanings are those of Triton's model configuration, because that is what users have; what Triton lacks is
in `parameters` under names that begin with `dovetail.` there and has fields of its own here. Reading a configuration
from JSON or a message is `reading`'s business, obeying it that of `scheduling`.

Source: Triton Inference Server, model configuration (model_config.proto) and its schedulers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class TimeoutAction(StrEnum):
    """What becomes of a request that has waited for longer than it may."""

    REJECT = "REJECT"
    DELAY = "DELAY"


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How long requests of one priority may wait, and how many.

    Attributes:
        timeout_action: REJECT fails them; DELAY serves them after all that are not late.
        default_timeout_us: Longest wait; 0: no limit of its own.
        allow_timeout_override: A request's own `timeout` may shorten the limit.
        max_queue_size: Most requests that wait; 0: only the bounds of rows and bytes hold.
    """

    timeout_action: TimeoutAction = TimeoutAction.REJECT
    default_timeout_us: int = 0
    allow_timeout_override: bool = True
    max_queue_size: int = 0


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """When a batch is closed, and in which order requests are served.

    Attributes:
        preferred_batch_sizes: Sizes worth waiting for; only with a delay.
        max_queue_delay_us: Longest wait for more requests while an instance is idle; 0: none.
        preserve_ordering: Replies leave in the order of the requests, also with several instances.
        priority_levels: Levels 1 (first) to this; 0: no priorities.
        default_priority_level: Level of requests that name none.
        default_policy: Of levels without one.
        priority_policies: Level -> policy.
    """

    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 0
    default_policy: QueuePolicy = field(default_factory=QueuePolicy)
    priority_policies: Mapping[int, QueuePolicy] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Buckets:
    """Lengths that variable axes are padded to, so that requests of different lengths share a batch.

    Attributes:
        axes: Input -> its variable axis, counted with the batch axis (1 is the first behind it).
        sizes: Lengths to pad to, rising; longer requests run as they are.
        pad_values: Input -> what to pad with; 0 for others, so a mask input is padded as "not there".
        output_axes: Output -> the axis that is cut back to the request's length.
    """

    axes: Mapping[str, int]
    sizes: tuple[int, ...]
    pad_values: Mapping[str, float] = field(default_factory=dict)
    output_axes: Mapping[str, int] = field(default_factory=dict)


class BatchInputKind(StrEnum):
    """What an input tells about the requests of a batch."""

    ELEMENT_COUNT = "BATCH_ELEMENT_COUNT"
    ACCUMULATED_ELEMENT_COUNT = "BATCH_ACCUMULATED_ELEMENT_COUNT"
    ACCUMULATED_ELEMENT_COUNT_WITH_ZERO = "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"
    MAX_ELEMENT_COUNT_AS_SHAPE = "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE"


@dataclass(frozen=True, slots=True)
class BatchInput:
    """An input that the batcher makes, so that a model finds the requests in a ragged input; no request has it.

    Attributes:
        kind: What it tells.
        target: Input of the model, of one axis.
        source: The ragged input that it is about.
        datatype: Of the protocol, INT32 or FP32 in Triton.
    """

    kind: BatchInputKind
    target: str
    source: str
    datatype: str = "INT32"


class ControlKind(StrEnum):
    """What a control input of a sequence model tells."""

    START = "CONTROL_SEQUENCE_START"
    END = "CONTROL_SEQUENCE_END"
    READY = "CONTROL_SEQUENCE_READY"
    CORRID = "CONTROL_SEQUENCE_CORRID"


@dataclass(frozen=True, slots=True)
class ControlInput:
    """One control input.

    Attributes:
        name: Input of the model.
        kind: What it tells.
        datatype: Of the protocol, such as "INT32".
        false_true: The two values, for all kinds but CORRID.
    """

    name: str
    kind: ControlKind
    datatype: str
    false_true: tuple[float, float] = (0, 1)


@dataclass(frozen=True, slots=True)
class SequenceState:
    """An output that is the same sequence's next input.

    Attributes:
        input_name: Where it goes in.
        output_name: Where it comes out.
        datatype: Of the protocol.
        dims: Shape without the batch axis; -1 for an axis that may have any length.
        initial: First value as raw bytes; None: zeros, with length 1 for each -1.
    """

    input_name: str
    output_name: str
    datatype: str
    dims: tuple[int, ...]
    initial: bytes | None = None


@dataclass(frozen=True, slots=True)
class SequenceBatching:
    """Requests of one sequence run in order, on one slot, with the model told where it begins and ends.

    Attributes:
        oldest: False: each sequence has a batch slot (direct); True: sequences share batches as they come (oldest).
        max_idle_us: A sequence without a request for this long is over, and its slot free.
        controls: Control inputs.
        states: Implicit states.
        max_candidates: Sequences at once per instance, for oldest.
        max_queue_delay_us: As for dynamic batching.
        preferred_batch_sizes: As for dynamic batching, for oldest.
        minimum_slot_utilization: For direct: share of slots with a request that ends the wait.
        preserve_ordering: For oldest: replies leave an instance in the order in which it got the requests.
        iterative: A request is a sequence of its own, which the model may have run again and again.
    """

    oldest: bool = False
    max_idle_us: int = 1_000_000
    controls: tuple[ControlInput, ...] = ()
    states: tuple[SequenceState, ...] = ()
    max_candidates: int = 1
    max_queue_delay_us: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    minimum_slot_utilization: float = 0.0
    preserve_ordering: bool = False
    iterative: bool = False

    @property
    def given_inputs(self) -> frozenset[str]:
        """Inputs of the model that the scheduler gives, and no request: controls and states."""
        return frozenset(
            {control.name for control in self.controls} | {state.input_name for state in self.states},
        )

    @property
    def kept_outputs(self) -> frozenset[str]:
        """Outputs of the model that the scheduler keeps, and no reply has."""
        return frozenset(state.output_name for state in self.states)


@dataclass(frozen=True, slots=True)
class PipelineStep:
    """One model of a pipeline.

    Attributes:
        model: Its name.
        version: 0: the newest that serves.
        inputs: The model's input -> tensor of the pipeline.
        outputs: The model's output -> tensor of the pipeline.
    """

    model: str
    version: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A graph of models.

    Attributes:
        steps: In any order; a step runs when its inputs are there.
        max_in_flight: Most requests in the graph at once; 0: no bound of its own.
    """

    steps: tuple[PipelineStep, ...]
    max_in_flight: int = 0


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """Everything about serving one model that its artifact does not decide.

    Attributes:
        max_batch_size: Most rows in a batch; None: what the artifact says. Never more than that.
        batching: None: batches are what queued while the engine was busy.
        sequences: Of a model with sequences.
        pipeline: Of a pipeline, which has no artifact.
        decoupled: A request has any number of replies.
        cache: Equal requests may be answered from the response cache.
        instances: Engine instances; 0: as the artifact's benchmark records say, else one.
        threads: Threads of an instance; 0: as the records say, else the node's.
        allowed_batch_sizes: Sizes that batches are padded to, rising; empty: any.
        buckets: Lengths that variable axes are padded to.
        split_oversize: Run a request with more rows than a batch may have in parts.
        optional_inputs: Inputs that a request may leave out.
        ragged_inputs: Inputs of one variable axis that batches concatenate along it, unpadded; the model gets them
            without a batch axis.
        batch_inputs: Inputs that the batcher makes.
        max_queue_rows: Most rows that wait; 0: the default.
        max_queue_bytes: Most bytes of inputs that wait; 0: the default.
        weight: Share of the processor that the model gets when several are busy, against 1 for others.
        parameters: Free for the model, as Python models see them.
    """

    max_batch_size: int | None = None
    batching: DynamicBatching | None = None
    sequences: SequenceBatching | None = None
    pipeline: Pipeline | None = None
    decoupled: bool = False
    cache: bool = False
    instances: int = 0
    threads: int = 0
    allowed_batch_sizes: tuple[int, ...] = ()
    buckets: Buckets | None = None
    split_oversize: bool = False
    optional_inputs: frozenset[str] = frozenset()
    ragged_inputs: frozenset[str] = frozenset()
    batch_inputs: tuple[BatchInput, ...] = ()
    max_queue_rows: int = 0
    max_queue_bytes: int = 0
    weight: float = 1.0
    parameters: Mapping[str, str] = field(default_factory=dict)
