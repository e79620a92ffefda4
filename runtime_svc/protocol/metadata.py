# SPDX-License-Identifier: Apache-2.0
"""What the server says about itself and its models: ServerMetadata, ModelMetadata, RepositoryIndex."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

from dovetail.pb import oip
from dovetail.tensor import TensorSpec
from runtime_svc.repository import IndexEntry, ModelState
from runtime_svc.served_model import ModelFacts

SERVER_NAME = "dovetail"
EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "statistics",
    "trace",
    "logging",
)
"""Extensions of the protocol that always work here; clients switch on them, so nothing else may be named."""

SYSTEM_SHARED_MEMORY = "system_shared_memory"
"""Another one, where the operator allows it."""


def server_version() -> str:
    """Version of the installed package; "0" when it runs from a bare checkout."""
    try:
        return version("dovetail")
    except PackageNotFoundError:
        return "0"


def server_metadata(extensions: Sequence[str]) -> oip.ServerMetadataResponse:
    """Name, version and extensions."""
    return oip.ServerMetadataResponse(name=SERVER_NAME, version=server_version(), extensions=extensions)


def model_metadata(facts: ModelFacts, versions: Sequence[int]) -> oip.ModelMetadataResponse:
    """Signature of a model as clients see it: the batch axis of a model that is batched is -1."""
    response = oip.ModelMetadataResponse(
        name=facts.name,
        versions=[str(number) for number in versions],
        platform=facts.platform or facts.engine,
        inputs=[_tensor(spec, facts) for spec in facts.inputs],
        outputs=[_tensor(spec, facts) for spec in facts.outputs],
    )
    response.properties.update(model_properties(facts))
    return response


def model_properties(facts: ModelFacts) -> dict[str, str]:
    """Which artifact answers for a model, in words: artifact, recipe, engine, device and the manifest's labels."""
    return {
        **facts.labels,
        "dovetail_artifact": facts.artifact_key,
        "dovetail_recipe": facts.recipe,
        "dovetail_engine": facts.engine,
        "dovetail_device": facts.device,
    }


def repository_index(entries: Iterable[IndexEntry], *, ready_only: bool) -> oip.RepositoryIndexResponse:
    """All versions with their states, or only those that serve."""
    return oip.RepositoryIndexResponse(
        models=[
            oip.RepositoryIndexResponse.ModelIndex(
                name=entry.name, version=str(entry.version), state=entry.state.value, reason=entry.reason
            )
            for entry in entries
            if entry.state is ModelState.READY or not ready_only
        ]
    )


def _tensor(spec: TensorSpec, facts: ModelFacts) -> oip.ModelMetadataResponse.TensorMetadata:
    shape = (-1, *spec.shape[1:]) if facts.max_batch_size else spec.shape
    return oip.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=shape)
