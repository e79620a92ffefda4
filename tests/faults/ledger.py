# SPDX-License-Identifier: Apache-2.0
"""What the mesh has acknowledged, and what of it does not hold: promises that outlive every fault.

P1  an acknowledged model or artifact is readable, byte for byte, until it is deleted;
P2  an acknowledged order ends in exactly one visible result; work may be done twice, published it is once;
P5  when the fault is over, all of this holds again without an operator, within the caller's limit.
(P3 and P4 are about nodes.)

The ledger is filled by `client` as answers arrive; `audit` asks the mesh at the end and compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from dovetail.pb.v1 import compiler_pb2
from tests.faults.trail import Step

READY = compiler_pb2.BUILD_PHASE_READY
FAILED = compiler_pb2.BUILD_PHASE_FAILED
CANCELLED = compiler_pb2.BUILD_PHASE_CANCELLED
ENDED = (READY, FAILED, CANCELLED)
TELLING_S = 5.0
"""A worker on a busy machine may tell of its claim this much later than it was given it."""


@dataclass
class Order:
    """An order that was acknowledged.

    Attributes:
        model: Model and version it is for.
        recipe: Recipe.
        phases: Ends that were seen, in order, without repetitions.
        manifests: Digests of manifests that were seen, in order, without repetitions.
        rebuilds: How often a client asked for it to be built anew, so that there may be one more result.
        cancelled: A client asked for it to be cancelled.
    """

    model: tuple[str, int]
    recipe: str
    phases: list[int] = field(default_factory=list)
    manifests: list[str] = field(default_factory=list)
    rebuilds: int = 0
    cancelled: bool = False

    @property
    def went_back(self) -> bool:
        """It was seen ready and then otherwise, though nobody asked for it to be built anew."""
        return READY in self.phases[:-1] and not self.rebuilds


@dataclass
class Ledger:
    """Everything that was acknowledged; used by one event loop.

    Attributes:
        models: sha256 of the content of each model version that exists.
        orders: By artifact key.
        deleted: Orders whose model was deleted.
        deleted_models: Versions that were deleted.
        audited: Models and orders that an audit has found as they should be.
        operations: How often each kind of call was answered as it should be.
        refusals: How often a call was refused with which status while something was broken, by kind.
        kills: By target.
        recoveries_s: Seconds from the end of a fault until everything acknowledged held again.
        violations: What did not hold.
    """

    models: dict[tuple[str, int], str] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    deleted: dict[str, Order] = field(default_factory=dict)
    deleted_models: set[tuple[str, int]] = field(default_factory=set)
    audited: set[object] = field(default_factory=set)
    operations: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    recoveries_s: list[float] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)

    def model(self, name: str, version: int, digest: str) -> None:
        known = self.models.setdefault((name, version), digest)
        if known != digest:
            self.broken("wrong_bytes", f"{name}@{version} was {known[:12]} and is {digest[:12]}")

    def order(self, key: str, model: tuple[str, int], recipe: str) -> None:
        self.orders.setdefault(key, Order(model, recipe))

    def ended(self, key: str, phase: int) -> None:
        phases = self.orders[key].phases
        if not phases or phases[-1] != phase:
            phases.append(phase)

    def saw_manifest(self, key: str, digest: str) -> None:
        order = self.orders[key]
        if digest in order.manifests[:-1]:
            self.broken("rolled_back", f"artifact {key[:12]} shows an earlier manifest {digest[:12]} again")
        elif not order.manifests or order.manifests[-1] != digest:
            order.manifests.append(digest)
        if len(order.manifests) > 1 + order.rebuilds:
            self.broken("duplicate_publish", f"artifact {key[:12]} was published as {order.manifests}")

    def delete(self, name: str, *, acknowledged: bool = True) -> None:
        """Forget what a deletion took; if it was acknowledged it stays away."""
        for model in [model for model in self.models if model[0] == name]:
            del self.models[model]
            if acknowledged:
                self.deleted_models.add(model)
        for key in [key for key, order in self.orders.items() if order.model[0] == name]:
            self.deleted[key] = self.orders.pop(key)

    def check_trail(self, steps: Iterable[Step], *, lossy: bool = False) -> None:
        """P2 as the workers saw it: fences grow with every claim of a key, and one claim publishes.

        With `lossy` META may have lost a deletion, so that the deleted model's builds went on until it was caught up.
        """
        newest: dict[str, Step] = {}
        publishes: dict[str, set[int]] = {}
        claimed: set[int] = set()
        for step in sorted(steps, key=lambda item: item.fence):
            if step.what == "claimed":
                before = newest.get(step.key)
                if step.fence in claimed or (before and before.at_s > step.at_s + TELLING_S):
                    self.broken("fence", f"{step} has no higher fence than {before}")
                newest[step.key] = step
                claimed.add(step.fence)
            elif step.what == "published":
                publishes.setdefault(step.key, set()).add(step.fence)
        for key, by in publishes.items():
            order = self.orders.get(key) or self.deleted.get(key)
            if lossy and key in self.deleted:
                continue
            if len(by) > 1 + (order.rebuilds if order else 0):
                self.broken("duplicate_publish", f"artifact {key[:12]} was published by claims {sorted(by)}: {order}")

    def broken(self, kind: str, what: str) -> None:
        self.violations.append(Violation(kind, what))

    def assert_kept(self) -> None:
        """Fail with everything that did not hold."""
        assert not self.violations, "\n".join(f"{item.kind}: {item.what}" for item in self.violations)


@dataclass(frozen=True)
class Violation:
    """One promise that was broken: kind is "lost", "stuck", "wrong_bytes", "duplicate_publish", "fence", "rolled_back",
    "untyped"."""

    kind: str
    what: str
