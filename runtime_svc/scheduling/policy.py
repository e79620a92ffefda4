# SPDX-License-Identifier: Apache-2.0
"""Priority levels and what each allows: how long requests may wait, how many, and what happens then.

Within a level requests are served in the order of their arrival, never by their deadlines: whoever sets none would
starve, and with a first-come queue the wait of a new request can be told when it comes (see `admission`). Deadlines
decide who is dropped, not who is first.

Source: Triton Inference Server, dynamic batcher: `priority_levels`, `ModelQueuePolicy` and its PriorityQueue. One
difference: a request's own timeout also counts where the level has none of its own, instead of being ignored there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovetail.errors import InvalidInputError
from runtime_svc.configuration.serving_config import DynamicBatching, QueuePolicy, ServingConfig, TimeoutAction
from runtime_svc.model_facts import ModelFacts


@dataclass(frozen=True, slots=True)
class Levels:
    """The priority levels of a model.

    Attributes:
        policies: One for each level, the first level first.
        default: Index of the level of requests that name none, or one that there is not.
    """

    policies: Sequence[QueuePolicy] = (QueuePolicy(),)
    default: int = 0

    @staticmethod
    def of(batching: DynamicBatching | None) -> Levels:
        """Those of a configuration."""
        if batching is None:
            return Levels()
        if not batching.priority_levels:
            return Levels((batching.default_policy,))
        return Levels(
            tuple(
                batching.priority_policies.get(level, batching.default_policy)
                for level in range(1, batching.priority_levels + 1)
            ),
            batching.default_priority_level - 1,
        )

    def index(self, priority: int) -> int:
        """Index of the level of a request."""
        return priority - 1 if 0 < priority <= len(self.policies) else self.default

    def wait_us(self, level: int, wanted_us: int) -> int:
        """Longest wait of a request of that level; 0: no limit. The request may only shorten it."""
        policy = self.policies[level]
        longest = policy.default_timeout_us
        if not policy.allow_timeout_override or wanted_us <= 0:
            return longest
        return min(longest, wanted_us) if longest else wanted_us


def check_config(facts: ModelFacts, config: ServingConfig) -> None:
    """Make sure that a configuration can be obeyed.

    Args:
        facts: Of the model, as the artifact says.
        config: How it is to be served.

    Raises:
        InvalidInputError: Something contradicts the model or something else in it.
    """
    for problem in (*_batch_problems(facts, config), *_order_problems(config), *_input_problems(facts, config)):
        raise InvalidInputError(f"configuration of model '{facts.name}': {problem}")


def _batch_problems(facts: ModelFacts, config: ServingConfig) -> Sequence[str]:
    limit = facts.max_batch_size if config.max_batch_size is None else config.max_batch_size
    preferred = () if config.batching is None else config.batching.preferred_batch_sizes
    problems = []
    if any(not 0 < size <= limit for size in preferred):
        problems.append(f"preferred_batch_size {list(preferred)} must lie between 1 and max_batch_size {limit}")
    sizes = config.allowed_batch_sizes
    if any(not 0 < size <= limit for size in sizes) or list(sizes) != sorted(set(sizes)):
        problems.append(f"allowed_batch_sizes {list(sizes)} must rise and lie between 1 and max_batch_size {limit}")
    if sizes and config.ragged_inputs:
        problems.append("allowed_batch_sizes needs inputs with a row for each request, so none may be ragged")
    if config.split_oversize and config.ragged_inputs:
        problems.append("split_oversize needs inputs with a row for each request, so none may be ragged")
    if config.instances < 0 or config.threads < 0:
        problems.append("instances and threads must be 0 or more")
    return problems


def _order_problems(config: ServingConfig) -> Sequence[str]:
    batching = config.batching
    if batching is None:
        return []
    problems = []
    if batching.priority_levels and not 0 < batching.default_priority_level <= batching.priority_levels:
        problems.append(
            f"default_priority_level {batching.default_priority_level} must lie between 1 and"
            f" priority_levels {batching.priority_levels}"
        )
    strangers = [level for level in batching.priority_policies if not 0 < level <= batching.priority_levels]
    if strangers:
        problems.append(f"priority_queue_policy is for level {strangers[0]} of {batching.priority_levels}")
    if batching.preserve_ordering:
        if batching.priority_levels > 1:
            problems.append("preserve_ordering allows one priority level only")
        policies = (batching.default_policy, *batching.priority_policies.values())
        if any(each.timeout_action is TimeoutAction.DELAY and each.default_timeout_us for each in policies):
            problems.append("preserve_ordering does not go with the timeout action DELAY")
    return problems


def _input_problems(facts: ModelFacts, config: ServingConfig) -> Sequence[str]:
    inputs = {spec.name: spec for spec in facts.inputs}
    outputs = {spec.name: spec for spec in facts.outputs}
    problems = [
        f"there is no input '{name}' that could be {what}"
        for what, names in (("optional", config.optional_inputs), ("ragged", config.ragged_inputs))
        for name in sorted(names - inputs.keys())
    ]
    problems += [
        f"batch_input '{made.target}' must be an input, and its source '{made.source}' a ragged one"
        for made in config.batch_inputs
        if made.target not in inputs or made.source not in config.ragged_inputs
    ]
    buckets = config.buckets
    if buckets is None:
        return problems
    first = 1 if facts.max_batch_size else 0
    problems += [
        f"buckets name axis {axis} of {kind} '{name}', which there is not"
        for kind, axes, specs in (("input", buckets.axes, inputs), ("output", buckets.output_axes, outputs))
        for name, axis in axes.items()
        if name not in specs or not first <= axis < len(specs[name].shape)
    ]
    problems += [
        f"input '{name}' of {inputs[name].datatype} can only be padded with 0 (an empty string)"
        for name, value in buckets.pad_values.items()
        if value and name in inputs and inputs[name].datatype in ("BF16", "BYTES")
    ]
    if list(buckets.sizes) != sorted(set(buckets.sizes)) or any(size < 1 for size in buckets.sizes):
        problems.append(f"bucket sizes {list(buckets.sizes)} must rise from 1 or more")
    return problems
