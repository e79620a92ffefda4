# SPDX-License-Identifier: Apache-2.0
"""Which machines an order is for: the one that it describes, a hardware class that somebody has, or all of them.

A class is known by the fingerprints that live workers and nodes reported; one fingerprint stands for its class, because
rules and artifacts depend on the class facts only. Pure: what is known is handed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dovetail.digest import check_name
from dovetail.errors import InvalidInputError, NotFoundError, UnavailableError
from dovetail.fingerprint import Fingerprint
from dovetail.hardware_class import hardware_class
from dovetail.pb.v1.compiler_pb2 import CompileRequest
from dovetail.pb.v1.fleet_pb2 import Node
from dovetail.pb.v1.storage_pb2 import WorkerRecord

FLEET = "fleet"
"""Instead of a class: every class that is known."""

Classes = Mapping[str, Fingerprint]
"""Key of a hardware class -> a machine of it."""


def known_classes(workers: Iterable[WorkerRecord], nodes: Iterable[Node] = ()) -> dict[str, Fingerprint]:
    """A machine of each class that a worker or node has, by key."""
    documents = [node.fingerprint_json for node in nodes] + [worker.fingerprint_json for worker in workers]
    found: dict[str, Fingerprint] = {}
    for document in documents:
        machine = Fingerprint.from_bytes(document)
        found[hardware_class(machine).key] = machine
    return dict(sorted(found.items()))


def choose_targets(request: CompileRequest, workers: Classes, everyone: Classes) -> list[Fingerprint]:
    """The machines that a Compile request is for.

    Args:
        request: Its fingerprint, its class, or neither.
        workers: Classes of the live workers; all of them are meant where the request names no machine.
        everyone: Classes of workers and nodes.

    Raises:
        InvalidInputError: A fingerprint and a class at once, an unreadable one, or a class that stands for several.
        NotFoundError: No worker or node is of that class.
        UnavailableError: No machine is named, or the whole fleet, and nobody is there.
    """
    if request.fingerprint_json and request.hardware_class:
        raise InvalidInputError("an order is for a fingerprint or for a hardware class; this one names both")
    if request.fingerprint_json:
        return [Fingerprint.from_bytes(request.fingerprint_json)]
    if request.hardware_class in ("", FLEET):
        return _all_of(everyone if request.hardware_class else workers)
    return [_named(check_name(request.hardware_class, "hardware class"), everyone)]


def _all_of(classes: Classes) -> list[Fingerprint]:
    if not classes:
        raise UnavailableError(
            "no build worker is alive, so there is no machine to build for: start one with "
            '"python -m compiler_svc.worker", or name a machine with its fingerprint'
        )
    return list(classes.values())


def _named(wanted: str, classes: Classes) -> Fingerprint:
    """The class with that key, or the only one whose key begins so."""
    if wanted in classes:
        return classes[wanted]
    matches = [key for key in classes if key.startswith(wanted)]
    if len(matches) > 1:
        raise InvalidInputError(
            f"hardware class {wanted!r} stands for {len(matches)} classes: {', '.join(matches[:5])}; "
            "write more of the key"
        )
    if not matches:
        raise NotFoundError(
            f"no live worker and no known node is of hardware class {wanted!r}; there is: "
            f"{', '.join(classes) or 'none'}; for another machine give its fingerprint"
        )
    return classes[matches[0]]
