# SPDX-License-Identifier: Apache-2.0
"""Whether a document of the durable tier is what its kind says, strictly and completely. Pure.

Everything that the compiler service writes there has its check here; a kind that is not known is left alone, since a
newer version may have written it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from google.protobuf.message import DecodeError

from compiler_svc.collection.retirement import Retired
from compiler_svc.collection.roots import model_root, pending_root, retired_root
from dovetail.artifact import SCHEMA, Manifest
from dovetail.benchmark import BenchmarkRecord
from dovetail.digest import sha256_hex
from dovetail.errors import InvalidInputError
from dovetail.pb.v1.storage_pb2 import BuildJob

Check = Callable[[str, bytes], None]


def inspect(key: str, data: bytes) -> str:
    """What is wrong with a document; "" if nothing is."""
    check = _CHECKS.get(key.partition("/")[0])
    if check is None:
        return ""
    try:
        check(key, data)
    except InvalidInputError as exc:
        return str(exc)
    except (DecodeError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        return f"document {key} is not readable: {type(exc).__name__}"
    return ""


def _model(key: str, data: bytes) -> None:
    root = model_root(key, data)
    if key != f"models/{root.model}/{root.version:08d}":
        raise InvalidInputError(f"document {key} is that of {root.model}@{root.version}")


def _manifest(key: str, data: bytes) -> None:
    schema = json.loads(data).get("schema", SCHEMA)
    if isinstance(schema, int) and schema > SCHEMA:  # of a newer version, which knows what is in it
        return
    if Manifest.from_bytes(data).artifact_key != key.split("/")[1]:
        raise InvalidInputError(f"document {key} is the manifest of another artifact")


def _retired(key: str, data: bytes) -> None:
    retired_root(key, data)
    if sha256_hex(Retired.from_bytes(data).manifest) != key.split("/")[2]:
        raise InvalidInputError(f"document {key} holds another manifest than its name says")


def _pending(key: str, data: bytes) -> None:
    pending_root(key, data)


def _envelope(_: str, data: bytes) -> None:
    if not isinstance(json.loads(data)["signatures"], list):
        raise TypeError


def _benchmark(_: str, data: bytes) -> None:
    document = json.loads(data)
    str(document["figure"])
    BenchmarkRecord.from_json(document["record"])


def _number(name: str) -> Check:
    def check(_: str, data: bytes) -> None:
        int(json.loads(data)[name])

    return check


def _kept(key: str, data: bytes) -> None:
    if sha256_hex(data) != key.rpartition("/")[2]:
        raise InvalidInputError(f"document {key} is not the content that its name says")


def _waiting(_: str, data: bytes) -> None:
    BuildJob.FromString(data)


_CHECKS: Mapping[str, Check] = {
    "models": _model,
    "manifests": _manifest,
    "retired": _retired,
    "publishing": _pending,
    "envelopes": _envelope,
    "benchmarks": _benchmark,
    "aliases": _number("version"),
    "sequences": _number("last"),
    "quotas": _number("limit_bytes"),
    "kept": _kept,
    "waiting": _waiting,
}
