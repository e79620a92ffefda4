# SPDX-License-Identifier: Apache-2.0
"""Asking the compiler service what this machine should serve, and checking the answer.

The service proposes a ladder; this machine decides. A manifest must be the bytes that its digest names and belong to
the model that was asked for, and its contract is judged again here, by the machine's own rules and fingerprint, before
a byte of it is fetched. Fetching and loading live elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc.aio

from dovetail.artifact import Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.digest import check_digest, digest_of, sha256_hex
from dovetail.errors import IncompatibleError, IntegrityError
from dovetail.fingerprint import Fingerprint
from dovetail.negotiation import Objective, check
from dovetail.pb.v1 import artifacts_pb2, registry_pb2
from dovetail.pb.v1.artifacts_pb2_grpc import ArtifactCacheStub
from dovetail.pb.v1.registry_pb2_grpc import ModelRegistryStub
from dovetail.rpc.status import translated_errors
from dovetail.rules import Verdict
from dovetail.wire import benchmark_bytes

UNARY_TIMEOUT_S = 30.0
_PEER = "the compiler service"

OBJECTIVES = tuple(str(objective) for objective in Objective)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a node asks for.

    Attributes:
        node: Its id.
        objective: One of OBJECTIVES.
        accuracy_floor: Task metric as a fraction; 0: none.
        order_builds: Let the service order what would be better.
    """

    node: str
    objective: str = "latency"
    accuracy_floor: float = 0.0
    order_builds: bool = True


@dataclass(frozen=True, slots=True)
class Ladder:
    """An offer as a node sees it.

    Attributes:
        model: Name.
        version: Version that the offer is for.
        keys: Artifact keys, best first; empty: nothing fits yet.
        reasons: Artifact key -> why it was not offered.
        unmeasured: Those of the keys that no machine of this one's hardware class has measured.
        manifest_digest: Of the first key's manifest; "": not told.
    """

    model: str
    version: int
    keys: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    unmeasured: frozenset[str] = frozenset()
    manifest_digest: str = ""

    @property
    def digest(self) -> str:
        """Changes whenever the offer does."""
        return digest_of([self.model, self.version, *self.keys])


class OfferClient:
    """A node's view of the compiler service; calls raise what their RPCs document, as errors of ours.

    Args:
        channel: To the compiler service.
        wish: What this node asks for.
    """

    def __init__(self, channel: grpc.aio.Channel, wish: Wish) -> None:
        self._artifacts = ArtifactCacheStub(channel)
        self._registry = ModelRegistryStub(channel)
        self._wish = wish

    async def models(self) -> tuple[str, ...]:
        """Names of all registered models, sorted."""
        with translated_errors(_PEER):
            reply = await self._registry.ListModels(registry_pb2.ListModelsRequest(), timeout=UNARY_TIMEOUT_S)
        return tuple(sorted({model.name for model in reply.models}))

    async def watch(self, model: str, version: int, fingerprint: Fingerprint) -> AsyncIterator[Ladder]:
        """The current offer at once, then a new one whenever it changes; ends only with an error."""
        call = self._artifacts.WatchOffers(self._request(model, version, fingerprint))
        try:
            with translated_errors(_PEER):
                async for offer in call:
                    yield read_ladder(offer)
        finally:
            call.cancel()

    async def manifest(self, key: str) -> tuple[bytes, bytes]:
        """The manifest of an artifact, exactly as it was stored, and the envelope that signs it (b"" if none does).

        Raises:
            NotFoundError: No such artifact, or the service lost some of its chunks.
            IntegrityError: The bytes are not what their digest says.
        """
        request = artifacts_pb2.GetManifestRequest(artifact_key=key)
        with translated_errors(_PEER):
            reply: artifacts_pb2.ManifestReply = await self._artifacts.GetManifest(request, timeout=UNARY_TIMEOUT_S)
        if sha256_hex(reply.manifest_json) != reply.digest:
            raise IntegrityError(f"manifest of artifact {key[:12]} does not have the digest that came with it")
        return reply.manifest_json, reply.envelope_json

    async def report_benchmark(self, key: str, record: BenchmarkRecord) -> None:
        """Tell what was measured here."""
        request = artifacts_pb2.ReportBenchmarkRequest(artifact_key=key, benchmark_json=benchmark_bytes(record))
        with translated_errors(_PEER):
            await self._artifacts.ReportBenchmark(request, timeout=UNARY_TIMEOUT_S)

    def _request(self, model: str, version: int, fingerprint: Fingerprint) -> artifacts_pb2.NegotiateRequest:
        return artifacts_pb2.NegotiateRequest(
            model=model,
            version=version,
            fingerprint_json=fingerprint.to_bytes(),
            objective=f"OBJECTIVE_{self._wish.objective.upper()}",
            accuracy_floor=self._wish.accuracy_floor,
            order_builds=self._wish.order_builds,
            node=self._wish.node,
        )


def read_ladder(offer: artifacts_pb2.Offer) -> Ladder:
    """The ladder in an offer.

    Raises:
        InvalidInputError: An artifact key is not one.
    """
    ranked = sorted((item for item in offer.assessments if item.rank > 0), key=lambda item: item.rank)
    return Ladder(
        model=offer.model,
        version=offer.version,
        keys=tuple(check_digest(item.artifact_key, "artifact key") for item in ranked),
        reasons=tuple(
            f"{item.recipe.name or item.artifact_key[:12]}: {item.reasons[0].rule} needs {item.reasons[0].needs}, "
            f"has {item.reasons[0].has}"
            for item in offer.assessments
            if item.rank == 0 and item.reasons
        ),
        unmeasured=frozenset(item.artifact_key for item in ranked if not item.measured),
        manifest_digest=offer.manifest_digest if ranked and offer.choice == ranked[0].artifact_key else "",
    )


def check_manifest(manifest: Manifest, *, key: str, model: str, version: int) -> None:
    """Make sure that a manifest is the one that was asked for, and that a device can verify what it names.

    A signature says who made a manifest, not that it is the one that was asked for: another one that the same worker
    signed is refused here.

    Raises:
        IntegrityError: It belongs to another artifact, model or version.
        InvalidInputError: It has no goldens.
    """
    if (manifest.artifact_key, manifest.model, manifest.version) != (key, model, version):
        raise IntegrityError(
            f"asked for artifact {key[:12]} of model {model} version {version}, got a manifest of "
            f"{manifest.artifact_key[:12]} of model {manifest.model} version {manifest.version}"
        )
    manifest.goldens_file()


def check_contract(manifest: Manifest, fingerprint: Fingerprint) -> None:
    """Judge an artifact by this machine's own rules.

    Raises:
        IncompatibleError: It does not run here; the text has every reason.
    """
    verdict, reasons = check(manifest, fingerprint)
    if verdict in (Verdict.RECOMPILE, Verdict.UNSUPPORTED):
        why = "; ".join(str(reason) for reason in reasons if reason.verdict is verdict)
        raise IncompatibleError(
            f"artifact {manifest.artifact_key[:12]} ({manifest.recipe.name}) of model {manifest.model} does not run on "
            f"this machine: {why or verdict.name}"
        )
