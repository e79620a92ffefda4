# SPDX-License-Identifier: Apache-2.0
"""What is known about a model that serves: who it is, what goes in and out, and what its requests may look like.

A value, read by the protocol's layer and by schedulers; how it is served is `serving_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dovetail.digest import check_name
from dovetail.errors import InvalidInputError
from dovetail.tensor import TensorSpec
from runtime_svc.configuration.serving_config import SequenceBatching, ServingConfig


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known about a loaded artifact, from its manifest.

    Attributes:
        name: Model.
        version: Model version, 1 or higher.
        inputs: Signature; shapes are whole, so the batch axis is in them if `max_batch_size` is above 0.
        outputs: Likewise.
        max_batch_size: Most rows that may run at once; 0 if requests must not be batched.
        artifact_key: Of the artifact.
        recipe: Name of its recipe.
        engine: Name of the engine that runs it.
        platform: What ModelMetadata calls the platform; the engine's name unless something says it better.
        device: Device of the engine.
        labels: Other facts to show, such as the precision.
        splits_oversize: A request may have more rows than `max_batch_size`.
        optional_inputs: Inputs that a request may leave out.
    """

    name: str
    version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    artifact_key: str
    recipe: str
    engine: str
    platform: str = ""
    device: str = "cpu"
    labels: Mapping[str, str] = field(default_factory=dict)
    splits_oversize: bool = False
    optional_inputs: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        check_name(self.name, "model name")
        if self.version < 1:
            raise InvalidInputError(f"version of model '{self.name}' is {self.version}; expected 1 or higher")
        if self.max_batch_size < 0:
            raise InvalidInputError(f"max_batch_size of model '{self.name}' is {self.max_batch_size}; expected >= 0")
        if self.max_batch_size and any(not spec.shape for spec in self.inputs):
            raise InvalidInputError(f"model '{self.name}' has an input without axes, so its max_batch_size must be 0")

    def served_as(self, config: ServingConfig) -> ModelFacts:
        """These facts as they are under a configuration.

        Raises:
            InvalidInputError: It wants larger batches than the artifact can run.
        """
        wanted = config.max_batch_size
        if wanted is not None and wanted > self.max_batch_size:
            raise InvalidInputError(
                f"max_batch_size {wanted} is configured for model '{self.name}', but its artifact"
                f" {self.artifact_key[:12]} takes {self.max_batch_size} at most; lower it, or compile for more"
            )
        limit = self.max_batch_size if wanted is None else wanted
        sequences = config.sequences or SequenceBatching()
        return replace(
            self,
            inputs=_as_sent(self.inputs, config),
            outputs=tuple(spec for spec in self.outputs if spec.name not in sequences.kept_outputs),
            max_batch_size=min(limit, max(config.allowed_batch_sizes, default=limit)),
            splits_oversize=config.split_oversize,
            optional_inputs=self.optional_inputs | config.optional_inputs,
        )


def _as_sent(inputs: tuple[TensorSpec, ...], config: ServingConfig) -> tuple[TensorSpec, ...]:
    """Inputs as requests have them: none that a scheduler makes, and ragged ones with a batch axis."""
    made = {each.target for each in config.batch_inputs} | (config.sequences or SequenceBatching()).given_inputs
    return tuple(
        replace(spec, shape=(-1, *spec.shape)) if spec.name in config.ragged_inputs and len(spec.shape) == 1 else spec
        for spec in inputs
        if spec.name not in made
    )
