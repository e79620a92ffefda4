# SPDX-License-Identifier: Apache-2.0
"""From a model configuration in Triton's form to what is served how; reads files of models and load parameters alike.

What lives here is the whole: signature, instances, versions, and that the parts agree with each other. Its form is read
by `document`, scheduling by `scheduling`, parameters of ours by `parameters`; the way back, for
ModelConfig, is `protocol.model_config`.

Law: a configuration that ModelConfig answers can be read here, and says the same.

Source: Triton Inference Server, model configuration (texts and checks where clients may match on them).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dovetail.digest import check_name
from dovetail.errors import InvalidInputError
from dovetail.pb import oip
from dovetail.tensor import TensorSpec
from runtime_svc.configuration.document import read_document
from runtime_svc.configuration.parameters import PREFIX, read_parameters
from runtime_svc.configuration.scheduling import (
    ReadFile,
    bounded,
    datatype_name,
    read_batch_inputs,
    read_batching,
    read_pipeline,
    read_sequences,
)
from runtime_svc.configuration.serving_config import ServingConfig

MAX_TENSORS = 1024
MAX_RANK = 64  # numpy's
MAX_INSTANCES = 256
MAX_BATCH_SIZE = 1 << 20
MAX_VERSIONS = 1024
SHOWN_PREFIX = "dovetail_"
"""How names of parameters begin that ModelConfig shows and that configure nothing."""


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which of the versions that are there are served.

    Attributes:
        latest: The newest so many; 0 if the policy is another.
        specific: These.
        everything: All of them.
    """

    latest: int = 1
    specific: tuple[int, ...] = ()
    everything: bool = False

    def choose(self, versions: Iterable[int]) -> list[int]:
        """Those to serve, rising; versions that are asked for and not there are among them, to be told about."""
        if self.specific:
            return list(self.specific)
        known = sorted(versions)
        return known if self.everything else known[-self.latest :]


@dataclass(frozen=True, slots=True)
class ModelDeclaration:
    """What a configuration says about a model.

    Attributes:
        name: Of the model; "" if it does not say.
        backend: Engine or kind that is to run it; "" if it does not say.
        max_batch_size: Most rows of a batch; 0: not batched.
        inputs: Declared signature, with the batch axis if it is batched; empty: as the model says.
        outputs: Likewise.
        versions: Which versions to serve.
        model_file: Name of the model's file; "" for the usual one.
        device: "cpu", "gpu", or "" for whatever the model is for.
        serving: How to serve it.
    """

    name: str = ""
    backend: str = ""
    max_batch_size: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    versions: VersionPolicy = VersionPolicy()
    model_file: str = ""
    device: str = ""
    serving: ServingConfig = field(default_factory=ServingConfig)


def read_model_config(
    text: str | bytes,
    *,
    name: str,
    artifact_max_batch_size: int = 0,
    shown: Mapping[str, str] | None = None,
    read_file: ReadFile | None = None,
) -> ModelDeclaration:
    """Read and check a configuration.

    Args:
        text: JSON in the form of Triton's ModelConfig.
        name: Of the model that it is for.
        artifact_max_batch_size: Of the model's artifact: holds if the configuration does not say otherwise.
        shown: Parameters that ModelConfig shows of this model and that are none of the model's own.
        read_file: Reads files of the model's folder, for initial states; None: there is none.

    Raises:
        InvalidInputError: Something is wrong; the text names the field and what was expected.
        OverLimitError: The text is too large.
    """
    what = f"the configuration of model '{name}'"
    message, document = read_document(text, what)
    if message.name and message.name != name:
        raise InvalidInputError(f"{what} is for another model: name: expected {name!r}, got {message.name[:80]!r}")
    given = "max_batch_size" in document or "maxBatchSize" in document
    if message.max_batch_size < 0:
        raise InvalidInputError(f"'max_batch_size' must be non-negative value for {name}")
    rows = message.max_batch_size if given else artifact_max_batch_size
    bounded(rows, "max_batch_size", high=MAX_BATCH_SIZE)
    serving = _serving(message, name, rows, shown or {}, read_file or _no_file)
    if given:
        serving = replace(serving, max_batch_size=rows)
    backend = message.backend or message.platform
    _check_kind(message, backend, name)
    declaration = ModelDeclaration(
        name=message.name,
        backend=backend,
        max_batch_size=rows,
        inputs=_specs(message.input, "input", rows),
        outputs=_specs(message.output, "output", rows),
        versions=_versions(message.version_policy),
        model_file=_file_name(message.default_model_filename),
        device=_device(message.instance_group, name),
        serving=serving,
    )
    if declaration.inputs:
        check_names(serving, declaration.inputs, declaration.outputs)
    return declaration


def check_names(config: ServingConfig, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Make sure that a configuration names only tensors that the model has, and axes that they have.

    Raises:
        InvalidInputError: It does not.
    """
    ins, outs = {spec.name: spec for spec in inputs}, {spec.name: spec for spec in outputs}
    for what, names in (("optional_inputs", config.optional_inputs), ("allow_ragged_batch", config.ragged_inputs)):
        for name in sorted(names - ins.keys()):
            raise InvalidInputError(f"{what}: the model has no input {name!r}; expected one of {', '.join(ins)}")
    if config.buckets is None:
        return
    for what, axes, specs in (
        ("axes", config.buckets.axes, ins),
        ("pad_values", dict.fromkeys(config.buckets.pad_values, 0), ins),
        ("output_axes", config.buckets.output_axes, outs),
    ):
        for name, axis in axes.items():
            if name not in specs:
                raise InvalidInputError(
                    f"{PREFIX}buckets: {what}: the model has no {name!r}; expected one of {', '.join(specs)}"
                )
            rank = len(specs[name].shape)
            if axis >= rank:
                raise InvalidInputError(f"{PREFIX}buckets: {what}: {name!r} has {rank} axes, so {axis} is none of them")


def _serving(
    message: oip.ModelConfig, name: str, rows: int, shown: Mapping[str, str], read_file: ReadFile
) -> ServingConfig:
    own = {
        key: value.string_value
        for key, value in message.parameters.items()
        if not key.startswith(SHOWN_PREFIX) and shown.get(key) != value.string_value
    }
    fields = read_parameters(own)
    optional = {each.name for each in message.input if each.optional} | fields.get("optional_inputs", frozenset())
    fields["optional_inputs"] = frozenset(optional)
    for size in fields.get("allowed_batch_sizes", ()):
        if size > rows:
            raise InvalidInputError(f"{PREFIX}allowed_batch_sizes: {size} is more than max_batch_size, {rows}")
    choice = message.WhichOneof("scheduling_choice")
    if message.response_cache.enable and (choice == "sequence_batching" or message.model_transaction_policy.decoupled):
        raise InvalidInputError(
            f"response_cache: cannot be enabled for model '{name}', whose replies depend on more than one request or"
            " are more than one"
        )
    return ServingConfig(
        batching=(read_batching(message.dynamic_batching, name, rows) if choice == "dynamic_batching" else None),
        sequences=(
            read_sequences(message.sequence_batching, name, rows, read_file) if choice == "sequence_batching" else None
        ),
        pipeline=read_pipeline(message.ensemble_scheduling, name) if choice == "ensemble_scheduling" else None,
        decoupled=message.model_transaction_policy.decoupled,
        cache=message.response_cache.enable,
        instances=_instances(message.instance_group),
        batch_inputs=read_batch_inputs(message.batch_input),
        ragged_inputs=frozenset(each.name for each in message.input if each.allow_ragged_batch),
        **fields,
    )


def _check_kind(message: oip.ModelConfig, backend: str, name: str) -> None:
    """A pipeline says so twice, as in Triton: by its platform and by its graph."""
    is_pipeline = message.WhichOneof("scheduling_choice") == "ensemble_scheduling"
    if is_pipeline and backend not in ("", "ensemble"):
        raise InvalidInputError(f"ensemble scheduling cannot be set for model '{name}' whose platform is not ensemble")
    if backend == "ensemble" and not is_pipeline:
        raise InvalidInputError(f"ensemble scheduling must be set for ensemble {name} whose platform is ensemble")
    if is_pipeline and message.instance_group:
        raise InvalidInputError(f"instance group should not be specified for ensemble '{name}'")


def _specs(tensors: Sequence[oip.ModelInput | oip.ModelOutput], what: str, rows: int) -> tuple[TensorSpec, ...]:
    if len(tensors) > MAX_TENSORS:
        raise InvalidInputError(f"{what}: {len(tensors)} tensors are too many; the limit is {MAX_TENSORS}")
    specs: dict[str, TensorSpec] = {}
    for index, tensor in enumerate(tensors):
        where = f"{what}[{index}]"
        if not tensor.name or tensor.name in specs:
            raise InvalidInputError(f"{where}: must specify 'name', another one for each {what}")
        dims = tuple(tensor.dims)
        if len(dims) >= MAX_RANK or any(dim < 1 and dim != -1 for dim in dims):
            raise InvalidInputError(
                f"model {what} dimension must be integer >= 1, or -1 to indicate a variable-size dimension:"
                f" {where}.dims is {list(dims)[:MAX_RANK]}"
            )
        if tensor.is_shape_tensor:
            raise InvalidInputError(f"{where}.is_shape_tensor: shape tensors have no effect here, so it is refused")
        shape = (-1, *dims) if rows else dims
        specs[tensor.name] = TensorSpec(tensor.name, datatype_name(tensor.data_type, where), shape)
    return tuple(specs.values())


def _versions(policy: oip.ModelVersionPolicy) -> VersionPolicy:
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(latest=0, everything=True)
    if choice == "specific":
        versions = tuple(sorted(set(policy.specific.versions)))
        if not versions or versions[0] < 1 or len(versions) > MAX_VERSIONS:
            raise InvalidInputError("version_policy.specific.versions: expected versions, each 1 or higher")
        return VersionPolicy(latest=0, specific=versions)
    if choice == "latest":
        where = "version_policy.latest.num_versions"
        return VersionPolicy(latest=bounded(policy.latest.num_versions, where, low=1, high=MAX_VERSIONS))
    return VersionPolicy()


def _instances(groups: Sequence[oip.ModelInstanceGroup]) -> int:
    total = 0
    for index, group in enumerate(groups):
        where = f"instance_group[{index}]"
        total += bounded(group.count, f"{where}.count", high=MAX_INSTANCES) or 1
        if group.gpus:
            raise InvalidInputError(
                f"{where}.gpus: which GPU an artifact runs on was decided when it was built; take it out"
            )
    return bounded(total, "instance_group", high=MAX_INSTANCES)


def _device(groups: Sequence[oip.ModelInstanceGroup], name: str) -> str:
    kind = oip.ModelInstanceGroup.Kind
    devices = {kind.KIND_GPU: "gpu", kind.KIND_CPU: "cpu", kind.KIND_AUTO: "", kind.KIND_MODEL: ""}
    unknown = [group.kind for group in groups if group.kind not in devices]
    if unknown:
        raise InvalidInputError(
            f"instance_group: kind {unknown[0]} is unknown; expected KIND_AUTO, KIND_CPU or KIND_GPU"
        )
    wanted = {devices[group.kind] for group in groups} - {""}
    if len(wanted) > 1:
        raise InvalidInputError(f"instance_group: expected one kind for all instances of model '{name}'")
    return wanted.pop() if wanted else ""


def _file_name(text: str) -> str:
    return check_name(text, "default_model_filename") if text else ""


def _no_file(path: str) -> bytes:
    raise InvalidInputError(f"there is no file {path[:80]!r} beside this configuration")
