# SPDX-License-Identifier: Apache-2.0
"""A configuration for a model that there is already: read, and held against what the model can do.

An artifact decides its signature, its engine and how many rows it takes at most; a configuration may only say how it
is served within that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from dovetail.errors import InvalidInputError
from dovetail.tensor import TensorSpec
from runtime_svc.configuration.reading import ModelDeclaration, check_names, read_model_config
from runtime_svc.configuration.serving_config import SequenceBatching, ServingConfig
from runtime_svc.model_facts import ModelFacts


def read_override(text: str, facts: ModelFacts) -> ServingConfig:
    """How an artifact is to be served.

    Args:
        text: JSON in the form of Triton's ModelConfig.
        facts: Of the artifact, as it is without any configuration.

    Raises:
        InvalidInputError: It cannot be served so; the text names the field and what was expected.
        OverLimitError: The text is too large.
    """
    declaration = read_model_config(
        text, name=facts.name, artifact_max_batch_size=facts.max_batch_size, shown=facts.labels
    )
    check_agreement(declaration, facts)
    return declaration.serving


def check_agreement(declaration: ModelDeclaration, facts: ModelFacts) -> None:
    """Make sure that a model can be served as it is declared.

    Raises:
        InvalidInputError: It cannot.
    """
    name, serving = facts.name, declaration.serving
    sent = facts.served_as(serving)
    if declaration.backend not in ("", facts.engine, facts.platform):
        raise InvalidInputError(f"backend: model '{name}' runs on {facts.engine!r}, got {declaration.backend[:80]!r}")
    if serving.pipeline is not None:
        raise InvalidInputError(f"ensemble_scheduling: model '{name}' runs on {facts.engine!r} and is no pipeline")
    if serving.decoupled:
        raise InvalidInputError(
            f"model_transaction_policy.decoupled: {facts.engine!r}, which runs model '{name}', gives one reply for each"
            " request"
        )
    if declaration.device and declaration.device != ("cpu" if facts.device == "cpu" else "gpu"):
        raise InvalidInputError(f"instance_group.kind: the artifact of model '{name}' runs on {facts.device!r}")
    if declaration.model_file:
        raise InvalidInputError(
            f"default_model_filename: the artifact of model '{name}' decides its files; take it out"
        )
    sequences = serving.sequences or SequenceBatching()
    made = sequences.given_inputs | {each.target for each in serving.batch_inputs}
    _check_signature("input", declaration, declaration.inputs, sent.inputs, made)
    _check_signature("output", declaration, declaration.outputs, sent.outputs, sequences.kept_outputs)
    check_names(serving, sent.inputs, sent.outputs)


def _check_signature(
    what: str,
    declaration: ModelDeclaration,
    declared: Sequence[TensorSpec],
    there: Sequence[TensorSpec],
    hidden: Collection[str],
) -> None:
    """Compare what is declared with what requests have; what only schedulers see may be declared as well."""
    if not declared:
        return
    specs, batched = {spec.name: spec for spec in there}, declaration.max_batch_size > 0
    for spec in declared:
        if spec.name in hidden:
            continue
        actual = specs.get(spec.name)
        if actual is None:
            raise InvalidInputError(f"{what}: the model has no {spec.name!r}; expected {', '.join(specs)}")
        shape = (-1, *actual.shape[1:]) if batched else actual.shape
        if (spec.datatype, spec.shape) != (actual.datatype, shape):
            first = 1 if batched else 0
            raise InvalidInputError(
                f"{what}: {spec.name!r} of the model is {actual.datatype} with dims {list(shape[first:])}, got"
                f" {spec.datatype} with dims {list(spec.shape[first:])}"
            )
    missing = sorted(specs.keys() - {spec.name for spec in declared})
    if missing:
        raise InvalidInputError(f"{what}: expected all of the model's or none; {', '.join(missing)} lacks")
