# SPDX-License-Identifier: Apache-2.0
"""The SDK's one implementation: every verb of the mesh as a coroutine or an async iterator.

`blocking_client` runs these same methods on a private event loop. Verbs about builds are in `build_calls`, messages are
read in `messages`, pushes made in `push`, tensors coded in `inference`, nodes chosen in `chosen_nodes`; here is what
remains: the calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from dovetail.accuracy import AccuracyPolicy
from dovetail.client.build_calls import CALL_TIMEOUT_S, BuildCalls
from dovetail.client.chosen_nodes import ChosenNodes
from dovetail.client.download import download_files
from dovetail.client.inference import Requests
from dovetail.client.layer_reports import fetch_layers, read_layers
from dovetail.client.messages import (
    negotiate_message,
    read_artifact,
    read_model,
    read_node,
    read_offer,
    read_push,
)
from dovetail.client.prepare import opened_bundle, with_samples
from dovetail.client.push import OnProgress, PushOrder, check_files, is_program, policy_of, send_push
from dovetail.client.results import Artifact, Model, Node, Offer, PushResult, Tensors
from dovetail.client.samples import Samples
from dovetail.client.store_calls import StoreCalls
from dovetail.errors import NotFoundError
from dovetail.fingerprint import Fingerprint
from dovetail.layers import LayerReport
from dovetail.offer import Objective
from dovetail.pb.v1 import artifacts_pb2, compiler_pb2, fleet_pb2, registry_pb2
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub
from dovetail.pb.v1.compiler_pb2_grpc import CompilerStub
from dovetail.pb.v1.fleet_pb2_grpc import FleetStub
from dovetail.pb.v1.registry_pb2_grpc import ModelRegistryStub
from dovetail.pb.v1.store_pb2_grpc import StoreStub
from dovetail.ranges import DimRange
from dovetail.rpc.channel import open_channel
from dovetail.rpc.status import translated_errors
from dovetail.tensor import Array, TensorSpec


class AsyncClient(BuildCalls, StoreCalls):
    """A connection to a mesh. Belongs to the event loop it is used in; many calls may run at once.

    All verbs raise the errors of `dovetail.errors`; UnavailableError if the service does not answer.
    """

    def __init__(self, address: str, *, inference: str | None = None) -> None:
        """See `connect_async`."""
        self._channel = open_channel(address)
        super().__init__(address, CompilerStub(self._channel))
        self._registry = ModelRegistryStub(self._channel)
        self._cache = ArtifactCacheStub(self._channel)
        self._fleet = FleetStub(self._channel)
        self._store = StoreStub(self._channel)
        self._chosen = ChosenNodes(inference, self.nodes)

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """Close all connections; running calls are cancelled."""
        await self._chosen.close()
        await self._channel.close()

    async def push(
        self,
        name: str,
        model: Path,
        *,
        calibration: Samples | None = None,
        validation: Samples | None = None,
        external_data: Sequence[Path] = (),
        policy: AccuracyPolicy | None = None,
        task: str = "",
        label_array: str = "",
        output: str = "",
        max_metric_drop: float | None = None,
        tolerances: Mapping[str, float] | None = None,
        ranges: Sequence[DimRange] = (),
        tenant: str = "",
        on_progress: OnProgress | None = None,
    ) -> PushResult:
        """Push a model; pushing the same content again returns the version that has it.

        Args:
            name: Model name: a-z 0-9 . _ -, at most 128 characters.
            model: The .onnx file; or a program that torch.export.save wrote (.pt2), which the service converts.
            calibration: Samples that int8 static recipes need: .npz with one array per input, first axis is the sample;
                a folder with one .npy per input; or an iterable of mappings input name -> array, one for each sample,
                which is read in another thread and never held as a whole.
            validation: The same, with labels if there are any; disjoint from calibration.
            external_data: Files that the model names as external data.
            policy: How accuracy is judged; or give its fields one by one:
            task: "classification", "regression", "embedding", "detection" or "generic"; default: decided by the labels.
            label_array: Name of the label array, which must be there; default "label", which may be absent.
            output: Output that the task metric reads; default: the first.
            max_metric_drop: Allowed loss of the task metric, a fraction; default: by precision.
            tolerances: Threshold of the gate (a field of `dovetail.gate.Thresholds`) -> value instead of the default.
            ranges: Sizes of free dimensions.
            tenant: Whose quota it counts for; "" is "default".
            on_progress: Called with bytes sent and bytes in all.

        Raises:
            InvalidInputError: A file cannot be read, or intake refuses one; the text says which and why.
            OverLimitError: Over a size, node or element limit, or the tenant's quota.
            UnsupportedError: An opset or operator that no backend supports.
        """
        check_files([model, *external_data])
        judged_by = policy_of(
            policy, task=task, label_array=label_array, output=output, max_metric_drop=max_metric_drop,
            tolerances=tolerances or {},
        )  # fmt: skip
        program = model if await asyncio.to_thread(is_program, model) else None
        order = PushOrder(
            name, model, tuple(external_data), policy=judged_by, ranges=tuple(ranges), program=program, tenant=tenant
        )  # fmt: skip
        async with with_samples(order, calibration, validation) as complete:
            return await self._push(complete, on_progress)

    async def push_bundle(
        self, bundle: Path, *, name: str = "", tenant: str = "", on_progress: OnProgress | None = None
    ) -> PushResult:
        """Push a bundle: a folder or zip with the model and a `dovetail.yaml` that says all the rest.

        Args:
            bundle: The folder or zip; `dovetail.client.bundle_file` shows the file's keys.
            name: Instead of the name in the file.
            tenant: Whose quota it counts for; "" is "default".
            on_progress: Called with bytes sent and bytes in all.

        Raises:
            InvalidInputError: The bundle is wrong, the model has another signature than it says, or as `push`.
            OverLimitError: Over a limit of a zip, or as `push`.
            UnsupportedError: PyYAML is not installed, or as `push`.
        """
        async with opened_bundle(bundle, name) as order:
            return await self._push(replace(order, tenant=tenant), on_progress)

    async def _push(self, order: PushOrder, on_progress: OnProgress | None) -> PushResult:
        with translated_errors(self.address):
            return read_push(await send_push(self._registry, order, on_progress))

    async def models(self, name: str = "") -> tuple[Model, ...]:
        """All versions of all models, or of one."""
        with translated_errors(self.address):
            reply = await self._registry.ListModels(registry_pb2.ListModelsRequest(name=name), timeout=CALL_TIMEOUT_S)
        return tuple(read_model(item) for item in reply.models)

    async def model(self, name: str, version: int = 0, *, alias: str = "") -> Model:
        """One version; 0 is the newest.

        Raises:
            NotFoundError: No such model, version or alias.
        """
        request = registry_pb2.GetModelRequest(name=name, version=version, alias=alias)
        with translated_errors(self.address):
            return read_model(await self._registry.GetModel(request, timeout=CALL_TIMEOUT_S))

    async def set_alias(self, name: str, alias: str, version: int) -> Model:
        """Point an alias such as "prod" at a version.

        Raises:
            NotFoundError: No such model or version.
        """
        request = registry_pb2.SetAliasRequest(name=name, alias=alias, version=version)
        with translated_errors(self.address):
            return read_model(await self._registry.SetAlias(request, timeout=CALL_TIMEOUT_S))

    async def delete(self, name: str, version: int = 0) -> int:
        """Remove a version, or all (0), with their artifacts; returns how many versions went.

        Raises:
            NotFoundError: No such model or version.
        """
        request = registry_pb2.DeleteModelRequest(name=name, version=version)
        with translated_errors(self.address):
            reply = await self._registry.DeleteModel(request, timeout=CALL_TIMEOUT_S)
        return int(reply.versions_deleted)

    async def negotiate(
        self,
        model: str,
        fingerprint: Fingerprint,
        *,
        version: int = 0,
        objective: Objective = Objective.LATENCY,
        accuracy_floor: float = 0.0,
        order_builds: bool = False,
        pin: str = "",
    ) -> Offer:
        """Which artifact fits that machine best, and why not the others: the answer behind `dovetail why`.

        Args:
            model: Model name.
            fingerprint: The machine; `dovetail.probe.measure()` measures this one.
            version: 0 is the newest.
            objective: What to optimise.
            accuracy_floor: Task metric that must be reached, a fraction; 0: none.
            order_builds: Order what would be better and can be built.
            pin: Artifact key that must be chosen if it fits.

        Raises:
            NotFoundError: No such model or version.
        """
        request = negotiate_message(model, fingerprint, version, objective, accuracy_floor, order_builds, pin)
        with translated_errors(self.address):
            return read_offer(await self._cache.Negotiate(request, timeout=CALL_TIMEOUT_S))

    async def watch_offers(
        self,
        model: str,
        fingerprint: Fingerprint,
        *,
        version: int = 0,
        objective: Objective = Objective.LATENCY,
        accuracy_floor: float = 0.0,
        order_builds: bool = False,
    ) -> AsyncGenerator[Offer, None]:
        """The current offer, then a new one whenever the choice or the set of artifacts offered changes; endless."""
        request = negotiate_message(model, fingerprint, version, objective, accuracy_floor, order_builds, "")
        call = self._cache.WatchOffers(request)
        try:
            with translated_errors(self.address):
                async for offer in call:
                    yield read_offer(offer)
        finally:
            call.cancel()

    async def artifacts(self, model: str = "", version: int = 0) -> tuple[Artifact, ...]:
        """Manifests of all artifacts, or of one model's."""
        request = artifacts_pb2.ListArtifactsRequest(model=model, version=version)
        with translated_errors(self.address):
            reply = await self._cache.ListArtifacts(request, timeout=CALL_TIMEOUT_S)
        return tuple(read_artifact(item) for item in reply.artifacts)

    async def manifest(self, artifact_key: str) -> Artifact:
        """One manifest.

        Raises:
            NotFoundError: No such artifact, or some of its chunks are gone.
        """
        request = artifacts_pb2.GetManifestRequest(artifact_key=artifact_key)
        with translated_errors(self.address):
            return read_artifact(await self._cache.GetManifest(request, timeout=CALL_TIMEOUT_S))

    async def download(self, artifact_key: str, into: Path) -> Mapping[str, Path]:
        """Download an artifact's files; returns name in the manifest -> verified file.

        Raises:
            NotFoundError: No such artifact, or some of its chunks are gone.
            IntegrityError: Bytes are not what their digest says.
        """
        artifact = await self.manifest(artifact_key)
        with translated_errors(self.address):
            return await download_files(self._cache, artifact.manifest, into)

    async def layers(self, artifact_key: str) -> LayerReport:
        """Where an artifact's error arises, layer by layer; also of a build that missed the gate.

        Raises:
            NotFoundError: No such artifact or build, or it has no layer report.
            IntegrityError: Bytes are not what their digest says.
        """
        try:
            artifact = await self.manifest(artifact_key)
        except NotFoundError:
            request = compiler_pb2.GetBuildRequest(artifact_key=artifact_key)
            with translated_errors(self.address):
                build = await self._compiler.GetBuild(request, timeout=CALL_TIMEOUT_S)
            return read_layers(artifact_key, build.layers_json)
        with translated_errors(self.address):
            return await fetch_layers(self._cache, artifact.manifest)

    async def nodes(self) -> tuple[Node, ...]:
        """Processes of the mesh that reported themselves."""
        with translated_errors(self.address):
            reply = await self._fleet.ListNodes(fleet_pb2.ListNodesRequest(), timeout=CALL_TIMEOUT_S)
        return tuple(read_node(item) for item in reply.nodes)

    async def infer(
        self,
        model: str,
        inputs: Tensors,
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Mapping[str, Array]:
        """One inference at a node that serves the model.

        Args:
            model: Model name.
            inputs: Input name -> array.
            version: "" is what the node serves.
            outputs: Names of the outputs wanted; none: all.
            timeout_s: Limit of the call.

        Returns:
            Output name -> array; read-only.

        Raises:
            NotFoundError: No such model, or no node serves it.
            InvalidInputError: Wrong input name, dtype or shape.
        """
        return await self._chosen.infer(model, inputs, version=version, outputs=outputs, timeout_s=timeout_s)

    async def infer_stream(
        self, model: str, requests: Requests, *, version: str = "", outputs: Sequence[str] = ()
    ) -> AsyncGenerator[Mapping[str, Array], None]:
        """Many inferences over one stream: one result per request, in their order.

        Args:
            model: Model name.
            requests: Mappings of input name -> array; an iterable or async iterable, read while results come back.
            version: "" is what the node serves.
            outputs: Names of the outputs wanted; none: all.
        """
        node = await self._chosen.node_for(model, version)
        results = node.stream(model, requests, version=version, outputs=outputs)
        async with aclosing(results):
            async for result in results:
                yield result

    async def signature(self, model: str, version: str = "") -> tuple[TensorSpec, ...]:
        """Inputs of a model as the node that serves it names them; raises as `infer`."""
        node = await self._chosen.node_for(model, version)
        return await node.signature(model, version)


def connect_async(address: str, *, inference: str | None = None) -> AsyncClient:
    """Connect to a mesh inside an event loop.

    Args:
        address: host:port of the compiler service.
        inference: host:port of the node that inferences go to; None: looked up per model at the compiler service.

    Returns:
        A client; connects on the first call. Close it, or use it in `async with`.

    Raises:
        InvalidInputError: An address is malformed.
    """
    return AsyncClient(address, inference=inference)
