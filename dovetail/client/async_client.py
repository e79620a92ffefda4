# SPDX-License-Identifier: Apache-2.0
"""The SDK's one implementation: every verb of the mesh as a coroutine or an async iterator.

`blocking_client` runs these same methods on a private event loop. Messages are read in `messages`, pushes made in
`push`, tensors coded in `inference`, nodes chosen in `chosen_nodes`; here is what remains: the calls.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Self

from dovetail.client.chosen_nodes import ChosenNodes
from dovetail.client.download import download_files
from dovetail.client.inference import Requests
from dovetail.client.messages import (
    negotiate_message,
    read_artifact,
    read_build,
    read_build_event,
    read_model,
    read_node,
    read_offer,
    read_push,
)
from dovetail.client.push import OnProgress, PushOrder, check_files, send_push
from dovetail.client.results import Artifact, Build, BuildEvent, Model, Node, Offer, PushResult, Tensors
from dovetail.fingerprint import Fingerprint
from dovetail.offer import Objective
from dovetail.pb.v1 import artifacts_pb2, compiler_pb2, fleet_pb2, registry_pb2
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub
from dovetail.pb.v1.compiler_pb2_grpc import CompilerStub
from dovetail.pb.v1.fleet_pb2_grpc import FleetStub
from dovetail.pb.v1.registry_pb2_grpc import ModelRegistryStub
from dovetail.rpc.channel import open_channel
from dovetail.rpc.status import translated_errors
from dovetail.tensor import Array, TensorSpec

CALL_TIMEOUT_S = 30.0
"""Limit of a short call; builds and pushes have none of their own."""


class AsyncClient:
    """A connection to a mesh. Belongs to the event loop it is used in; many calls may run at once.

    All verbs raise the errors of `dovetail.errors`; UnavailableError if the service does not answer.
    """

    def __init__(self, address: str, *, inference: str | None = None) -> None:
        """See `connect_async`."""
        self.address = address
        self._channel = open_channel(address)
        self._registry = ModelRegistryStub(self._channel)
        self._compiler = CompilerStub(self._channel)
        self._cache = ArtifactCacheStub(self._channel)
        self._fleet = FleetStub(self._channel)
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
        calibration: Path | None = None,
        validation: Path | None = None,
        external_data: Sequence[Path] = (),
        task: str = "",
        label_array: str = "",
        max_metric_drop: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> PushResult:
        """Push a model; pushing the same content again returns the version that has it.

        Args:
            name: Model name: a-z 0-9 . _ -, at most 128 characters.
            model: The .onnx file.
            calibration: .npz with one array per input, first axis is the sample; int8 static recipes need it.
            validation: .npz in the same form, with labels if the task is classification; disjoint from calibration.
            external_data: Files that the model names as external data.
            task: "classification" or "generic"; default: decided by the labels.
            label_array: Name of the label array; default "label".
            max_metric_drop: Allowed loss of the task metric, a fraction; default: by precision.
            on_progress: Called with bytes sent and bytes in all.

        Raises:
            InvalidInputError: A file cannot be read, or intake refuses one; the text says which and why.
            OverLimitError: Over a size, node or element limit.
            UnsupportedError: An opset or operator that no backend supports.
        """
        check_files([model, calibration, validation, *external_data])
        order = PushOrder(
            name, model, tuple(external_data), calibration, validation, task, label_array, max_metric_drop
        )
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

    async def compile(
        self,
        model: str,
        *,
        version: int = 0,
        recipes: Iterable[str] = (),
        fingerprint: Fingerprint | None = None,
        force: bool = False,
    ) -> AsyncGenerator[BuildEvent, None]:
        """Order builds and watch them; ends when all have ended. Stopping to listen cancels nothing.

        Args:
            model: Model name.
            version: 0 is the newest.
            recipes: Names of recipes; none: all that the machine can use.
            fingerprint: Machine it is for; None: the class of the live workers.
            force: Build again although a result or a failure is known.

        Raises:
            NotFoundError: No such model, version or recipe.
            PreconditionError: A recipe needs calibration samples and the model has none.
        """
        request = compiler_pb2.CompileRequest(
            model=model,
            version=version,
            recipes=list(recipes),
            fingerprint_json=fingerprint.to_bytes() if fingerprint else b"",
            force=force,
        )
        call = self._compiler.Compile(request)
        try:
            with translated_errors(self.address):
                async for event in call:
                    yield read_build_event(event)
        finally:
            call.cancel()

    async def build_all(
        self,
        model: str,
        *,
        version: int = 0,
        recipes: Iterable[str] = (),
        fingerprint: Fingerprint | None = None,
        force: bool = False,
    ) -> tuple[Build, ...]:
        """Like `compile`, and wait: the final state of every build, failed ones included."""
        builds: dict[str, Build] = {}
        events = self.compile(model, version=version, recipes=recipes, fingerprint=fingerprint, force=force)
        async with aclosing(events):
            async for event in events:
                builds[event.build.artifact_key] = event.build
        return tuple(builds.values())

    async def build(self, artifact_key: str) -> Build:
        """One build.

        Raises:
            NotFoundError: No such build.
        """
        request = compiler_pb2.GetBuildRequest(artifact_key=artifact_key)
        with translated_errors(self.address):
            return read_build(await self._compiler.GetBuild(request, timeout=CALL_TIMEOUT_S))

    async def builds(self, model: str = "", version: int = 0) -> tuple[Build, ...]:
        """All builds, or those of one model; newest first."""
        request = compiler_pb2.ListBuildsRequest(model=model, version=version)
        with translated_errors(self.address):
            reply = await self._compiler.ListBuilds(request, timeout=CALL_TIMEOUT_S)
        return tuple(read_build(item) for item in reply.builds)

    async def cancel(self, artifact_key: str) -> Build:
        """Ask for a build to stop.

        Raises:
            NotFoundError: No such build.
            PreconditionError: It has ended.
        """
        request = compiler_pb2.CancelBuildRequest(artifact_key=artifact_key)
        with translated_errors(self.address):
            return read_build(await self._compiler.CancelBuild(request, timeout=CALL_TIMEOUT_S))

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
