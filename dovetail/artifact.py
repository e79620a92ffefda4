# SPDX-License-Identifier: Apache-2.0
"""Artifacts: the manifest, the files it names, and the key under which the result of a build is looked up.

A manifest is a canonical JSON document. Its bytes are what is hashed, stored and (by a later layer) signed, so they
are never re-encoded on the way: gRPC carries them as bytes. What a machine needs to run the artifact is in the
manifest's contract; the machine's own rules check it again before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dovetail.benchmark import BenchmarkRecord
from dovetail.contract import Contract
from dovetail.digest import canonical_json, check_digest, check_name, digest_of, read_json, sha256_hex
from dovetail.errors import InvalidInputError, brief
from dovetail.gate import GateReport
from dovetail.recipe import Recipe
from dovetail.tensor import TensorSpec

SCHEMA = 1
MAX_MANIFEST_BYTES = 1 << 20
"""Refuse larger manifests. A 500 MiB artifact has about 500 chunk references, some 80 KiB."""

CHUNK_BYTES = (1 << 20) - 4096
"""Size of every chunk but the last, before compression: with Redis' header it still fits a 1 MiB allocator class."""

ROLES = ("model", "goldens", "layers", "report")

_MAX_INT64 = (1 << 63) - 1  # the messages that show these numbers hold no more


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """One chunk of a file.

    Attributes:
        digest: sha256 of the plain bytes.
        size_bytes: Plain size.
    """

    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of an artifact.

    Attributes:
        name: File name that the engine expects ("model.onnx", "model.xml"); [A-Za-z0-9._-], no folders. It is only used
            inside a directory that is named by the artifact's digest.
        role: "model" for what the engine loads, "goldens" for the npz with inputs and reference outputs, "layers" for
            the layer report, "report" for what else the build tells people (logs, times).
        size_bytes: Plain size.
        digest: sha256 of the whole file.
        chunks: Its chunks in order.
    """

    name: str
    role: str
    size_bytes: int
    digest: str
    chunks: tuple[ChunkRef, ...]

    def __post_init__(self) -> None:
        check_name(self.name.lower(), "file name")
        check_digest(self.digest, f"digest of {self.name}")
        if self.role not in ROLES:
            raise InvalidInputError(f"file {self.name}: role {self.role!r} is not one of {ROLES}")
        if any(chunk.size_bytes < 1 for chunk in self.chunks):
            raise InvalidInputError(f"file {self.name}: a chunk has less than one byte")
        if sum(chunk.size_bytes for chunk in self.chunks) != self.size_bytes:
            raise InvalidInputError(f"file {self.name}: its chunks do not add up to its {self.size_bytes} bytes")


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that is known about an artifact.

    Attributes:
        artifact_key: Lookup key, see `artifact_key`.
        model: Model name.
        version: Model version.
        model_digest: Digest of the normalised graph.
        recipe: How it was built.
        contract: What a machine must have.
        inputs: Signature.
        outputs: Signature.
        max_batch_size: Largest batch along the first axis that may be formed; 0 if requests must not be batched.
        toolchain: Tool -> exact version of everything that touched the bytes.
        gate: Report of the numeric gate.
        files: Files of the artifact, goldens included.
        benchmarks: Figures measured by the build.
        labels: Other facts for people, such as {"calibration": "uncalibrated"}.
        built_by: Hardware class of the builder (provenance, not contract).
        built_at_ms: Wall clock of the builder.
        verified: How the gate ran: "native" on a CPU of `verified_isa`, "emulated" by an emulation of one, or "no".
        verified_isa: Instruction set class that `verified` speaks of; on machines of other classes nothing is verified.
            "" for manifests and devices where it does not matter: then `verified` holds on every machine.
    """

    artifact_key: str
    model: str
    version: int
    model_digest: str
    recipe: Recipe
    contract: Contract
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    toolchain: Mapping[str, str]
    gate: GateReport
    files: tuple[FileEntry, ...]
    benchmarks: tuple[BenchmarkRecord, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    built_by: str = ""
    built_at_ms: int = 0
    verified: str = "native"
    verified_isa: str = ""

    def __post_init__(self) -> None:
        check_digest(self.artifact_key, "artifact key")
        check_name(self.model, "model name")
        for name in ("version", "max_batch_size", "built_at_ms"):
            if not 0 <= getattr(self, name) <= _MAX_INT64:
                raise InvalidInputError(f"manifest: {name} is {str(getattr(self, name))[:40]}; expected 0 to 2^63 - 1")
        if len({entry.name for entry in self.files}) != len(self.files):
            raise InvalidInputError(f"manifest of {self.artifact_key[:12]}: two files have the same name")

    @property
    def size_bytes(self) -> int:
        """Size of the files that the engine loads; goldens do not count."""
        return sum(entry.size_bytes for entry in self.files if entry.role == "model")

    def chunk_digests(self) -> frozenset[str]:
        """Digests of all chunks of all files."""
        return frozenset(chunk.digest for entry in self.files for chunk in entry.chunks)

    def goldens_file(self) -> FileEntry:
        """The file with the goldens.

        Raises:
            InvalidInputError: The manifest names none: such an artifact cannot be verified on a device.
        """
        for entry in self.files:
            if entry.role == "goldens":
                return entry
        raise InvalidInputError(f"artifact {self.artifact_key[:12]} has no goldens, so no device can verify it")

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "schema": SCHEMA,
            "artifact_key": self.artifact_key,
            "model": self.model,
            "version": self.version,
            "model_digest": self.model_digest,
            "recipe": self.recipe.to_json(),
            "contract": self.contract.to_json(),
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "max_batch_size": self.max_batch_size,
            "toolchain": dict(self.toolchain),
            "gate": self.gate.to_json(),
            "files": [asdict(entry) for entry in self.files],
            "benchmarks": [record.to_json() for record in self.benchmarks],
            "labels": dict(self.labels),
            "built_by": self.built_by,
            "built_at_ms": self.built_at_ms,
            "verified": self.verified,
            "verified_isa": self.verified_isa,
        }

    def to_bytes(self) -> bytes:
        """Canonical document; its sha256 is the manifest digest."""
        return canonical_json(self.to_json())

    def digest(self) -> str:
        """Digest of the canonical document."""
        return sha256_hex(self.to_bytes())

    @staticmethod
    def from_bytes(data: bytes) -> Manifest:
        """Read a document.

        Raises:
            InvalidInputError: Too large, not JSON, of another schema, or inconsistent.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise InvalidInputError(f"manifest has {len(data)} bytes, at most {MAX_MANIFEST_BYTES} are read")
        document: Any = read_json(data, "manifest")
        try:
            if document["schema"] != SCHEMA:
                raise InvalidInputError(f"manifest has schema {document['schema']!r}, this version reads {SCHEMA}")
            return Manifest(
                artifact_key=document["artifact_key"],
                model=document["model"],
                version=int(document["version"]),
                model_digest=document["model_digest"],
                recipe=Recipe.from_json(document["recipe"]),
                contract=Contract.from_json(document["contract"]),
                inputs=tuple(TensorSpec.from_json(item) for item in document["inputs"]),
                outputs=tuple(TensorSpec.from_json(item) for item in document["outputs"]),
                max_batch_size=int(document["max_batch_size"]),
                toolchain=dict(document["toolchain"]),
                gate=GateReport.from_json(document["gate"]),
                files=tuple(_file_entry(item) for item in document["files"]),
                benchmarks=tuple(BenchmarkRecord.from_json(item) for item in document["benchmarks"]),
                labels=dict(document["labels"]),
                built_by=document["built_by"],
                built_at_ms=int(document["built_at_ms"]),
                verified=document["verified"],
                verified_isa=str(document.get("verified_isa", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
            raise InvalidInputError(f"manifest is not readable: {brief(repr(exc))}") from exc


def _file_entry(document: Mapping[str, Any]) -> FileEntry:
    chunks = tuple(ChunkRef(check_digest(item["digest"]), int(item["size_bytes"])) for item in document["chunks"])
    return FileEntry(document["name"], document["role"], int(document["size_bytes"]), document["digest"], chunks)


def artifact_key(
    *,
    model: str,
    version: int,
    model_digest: str,
    recipe: Recipe,
    toolchain: Mapping[str, str],
    target: Mapping[str, Any],
    calibration_digest: str,
    policy_digest: str = "",
) -> str:
    """Key of a build's result: equal if and only if the bytes and their meaning should be equal.

    Args:
        model: Model name. A manifest says which model version it is of, and a node serves it as that and nothing else.
        version: Its version.
        model_digest: Digest of the normalised graph (not of the file: serialisation order and doc strings vary).
        recipe: With all defaults resolved.
        toolchain: Tool -> exact version of every tool that touches bytes.
        target: The contract's target descriptor (arch, ISA needs, devices): the contract, not the builder.
        calibration_digest: Digest of the calibration samples in order; "" if the recipe uses none.
        policy_digest: Digest of the accuracy policy and validation samples that the gate judged by.

    Source:
        Bazel Remote Execution API: an action's digest covers command, inputs and platform.
    """
    return digest_of(
        {
            "schema": SCHEMA,
            "model": [model, version, model_digest],
            "recipe": recipe.to_json(),
            "toolchain": dict(toolchain),
            "target": dict(target),
            "calibration": calibration_digest if recipe.needs_calibration else "",
            "policy": policy_digest,
        }
    )
