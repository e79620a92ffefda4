# SPDX-License-Identifier: Apache-2.0
"""A session over the process of a Python model: runs requests there, and starts the process again when it dies.

A process that dies fails the request it had, and no other: a watching thread starts the next one at once, then after
pauses that grow. While a process starts, requests wait for it; during a pause they fail at once with the time that is
left of it. `ready` tells the truth about it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dovetail.errors import BusyError, DovetailError, UnavailableError
from dovetail.tensor import Array, TensorSpec
from runtime_svc.python_models.child_process import ChildDiedError, ChildProcess
from runtime_svc.python_models.run_header import run_header
from runtime_svc.python_models.turns_header import read_results, turns_header
from runtime_svc.scheduling.call_context import CallContext
from runtime_svc.scheduling.iterative.turns import Turn, TurnResult

_log = logging.getLogger(__name__)

PAUSES_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pause before each start after a death; the last one is for all later ones."""

SETTLED_S = 60.0
"""A process that lived this long died for a new reason: the pauses begin anew."""


class PythonSession:
    """See `dovetail.engines.base.Session`; also decoupled (`run_decoupled`), iterative (`run_turns`, see
    `IterativeSession`), and told of its callers (`expect`).

    Args:
        model: Name, for messages and logs.
        inputs: Signature.
        outputs: Likewise.
        start: Starts a process with the model loaded; blocks.
        infer_s: Longest time to one reply; 0: none.
        unload_s: Longest time to unload.
        decoupled: The model gives any number of replies.
        iterative: Its requests may have many turns.
        batched: Axis 0 is the batch.
        on_change: Called from a thread after `ready` has changed.
        pauses_s: See PAUSES_S.

    Raises:
        DovetailError: The first start failed.
    """

    concurrent = False
    outside = True
    """Runs are in another process, and may wait for anything, so they hold no turn at the gate between models."""

    def __init__(
        self,
        model: str,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        start: Callable[[], ChildProcess],
        infer_s: float = 0.0,
        unload_s: float = 10.0,
        decoupled: bool = False,
        iterative: bool = False,
        batched: bool = True,
        on_change: Callable[[], None] = lambda: None,
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        self.inputs, self.outputs, self.decoupled, self.iterative = inputs, outputs, decoupled, iterative
        self.generation = 1
        self._model, self._batched = model, batched
        self._datatypes = {spec.name: spec.datatype for spec in inputs}
        self._start = start
        self._infer_s, self._unload_s = infer_s or None, unload_s
        self._on_change = on_change
        self._pauses_s = tuple(pauses_s)
        self._contexts: Sequence[CallContext] = ()
        self._number = 0
        self._changed = threading.Condition()
        self._closed = False
        self._starting = False
        self._next_start_s = 0.0
        self._why = ""
        self._child: ChildProcess | None = start()
        self._watcher = threading.Thread(target=self._watch, name=f"watch-{model}", daemon=True)
        self._watcher.start()

    @property
    def ready(self) -> bool:
        """True while a process has the model loaded; for any thread."""
        return self._child is not None

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        child = self._child
        return child.pid if child is not None else None

    def expect(self, contexts: Sequence[CallContext]) -> int:
        """Say whose rows the next run has; on the thread that runs it. The number of that run, for `cancel`."""
        self._contexts = contexts
        return self._number + 1

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; see `Session.run`. What the model's code raises becomes an EngineError with its type and text.

        Raises:
            DovetailError: The model's code raised that.
            EngineError: The code failed, or the process died or took too long.
            BusyError: The process died before, and is started again after a pause.
        """
        child = self._ask(feeds)
        try:
            return child.arrays(child.answer(self._infer_s))
        except ChildDiedError as error:
            self._lose(child, str(error))
            raise

    def run_decoupled(self, feeds: Mapping[str, Array], emit: Callable[[Mapping[str, Array]], None]) -> None:
        """Run once; `emit` is called with each reply, and the model goes on while it is taken.

        Raises:
            As `run`, and whatever `emit` raises, after the model has stopped.
        """
        child = self._ask(feeds)
        try:
            while (message := child.answer(self._infer_s)).op == "reply":
                try:
                    emit(child.arrays(message))
                except BaseException:
                    self._stop(child)
                    raise
                child.acknowledge(more=True)
        except ChildDiedError as error:
            self._lose(child, str(error))
            raise

    def run_turns(self, turns: Sequence[Turn], ended: Sequence[int]) -> list[TurnResult]:
        """A run of requests that may have many; see `IterativeSession.run_turns`.

        Raises:
            As `run`.
        """
        self._number += 1
        header, feeds, datatypes = turns_header(self._number, turns, ended, self._datatypes)
        child = self._ready_child()
        try:
            alike = None if header["new"] or ended else ("turns", *header["calls"])
            child.ask(header, feeds, datatypes, alike=alike)
            message = child.answer(self._infer_s)
            return read_results(message.header.get("results"), child.arrays(message), len(turns), child.error)
        except ChildDiedError as error:
            self._lose(child, str(error))
            raise

    def stoppable(self) -> PythonRun:
        """The next run, with a way to tell the model's code that its callers have left; see `StoppableSession`."""
        return PythonRun(self, self._number + 1)

    def cancel(self, caller: int | None = None, run: int | None = None) -> None:
        """A caller of a run has left; for any thread. The model may look at that, and nothing else comes of it.

        Args:
            caller: Their place among the contexts that `expect` was given; None: all have left.
            run: Number of the run, as `expect` gave it: it may be over, or not have begun. None: the present one.
        """
        child = self._child
        if child is not None:
            child.cancel(self._number if run is None else run, caller)

    def close(self) -> None:
        """Unload the model and end the process."""
        with self._changed:
            self._closed = True
            child, self._child = self._child, None
            self._changed.notify_all()
        if child is not None:
            child.unload(self._unload_s)
        self._watcher.join(self._unload_s)  # it may be loading: what it starts is ended when that is done

    def _stop(self, child: ChildProcess) -> None:
        """Have a decoupled model end its present run; what it still replies is passed over."""
        child.cancel(self._number)
        child.acknowledge(more=False)
        while child.answer(self._infer_s).op == "reply":
            child.acknowledge(more=False)

    def _ask(self, feeds: Mapping[str, Array]) -> ChildProcess:
        self._number += 1
        contexts, self._contexts = self._contexts, ()
        rows = next((array.shape[0] for array in feeds.values()), 1) if self._batched else 1
        header, alike = run_header(self._number, rows, contexts, decoupled=self.decoupled)
        while True:
            child = self._ready_child()
            try:
                child.ask(header, feeds, self._datatypes, alike=alike)
            except ChildDiedError as error:  # before this request: another process may take it
                self._lose(child, str(error))
                continue
            return child

    def _ready_child(self) -> ChildProcess:
        with self._changed:
            while True:
                if self._closed:
                    raise UnavailableError(f"model '{self._model}' is being unloaded")
                if self._child is not None:
                    return self._child
                left_s = self._next_start_s - time.monotonic()
                if not self._starting and left_s > 0:
                    raise BusyError(
                        f"the process of Python model '{self._model}' is started again in {left_s:.1f} s: {self._why}",
                        retry_after_s=left_s,
                    )
                self._changed.wait()

    def _watch(self) -> None:
        deaths, child = 0, self._child
        while child is not None:
            born_s = time.monotonic()
            how = child.wait()
            self._lose(child, f"the process {how}")
            child.release()
            deaths = 0 if time.monotonic() - born_s >= SETTLED_S else deaths
            child = None
            while child is None:
                if self._closed:
                    return
                child = self._start_again(self._pauses_s[min(deaths, len(self._pauses_s) - 1)])
                deaths += 1

    def _lose(self, child: ChildProcess, why: str) -> None:
        """A process has died: nothing more is sent to it. Whoever sees it first says so."""
        with self._changed:
            if self._closed or self._child is not child:
                return
            self._child, self._why, self._starting = None, why, True
        _log.warning("python_model.died model=%s why=%r", self._model, why)
        self._on_change()

    def _start_again(self, pause_s: float) -> ChildProcess | None:
        with self._changed:
            self._next_start_s = time.monotonic() + pause_s
            self._starting = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed, pause_s)
            if self._closed:
                return None
            self._starting = True
        try:
            child = self._start()
        except DovetailError as error:
            self._why = str(error)
            _log.warning("python_model.start_failed model=%s why=%r", self._model, self._why)
            return None
        return child if self._adopt(child) else None

    def _adopt(self, child: ChildProcess) -> bool:
        with self._changed:
            closed = self._closed
            if not closed:
                self._child, self._starting = child, False
                self.generation += 1
                self._changed.notify_all()
        if closed:
            child.kill()
            child.release()
            return False
        _log.info("python_model.started_again model=%s pid=%d", self._model, child.pid)
        self._on_change()
        return True


@dataclass(frozen=True, slots=True)
class PythonRun:
    """See `dovetail.engines.base.StoppableRun`. A model ends early if its code looks, and then gives what it likes."""

    session: PythonSession
    number: int

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """As `PythonSession.run`."""
        return self.session.run(feeds)

    def stop(self) -> None:
        """Nobody waits for it any more; see `StoppableRun.stop`."""
        self.session.cancel(run=self.number)

    def leave(self, caller: int) -> None:
        """One of its callers has left, by their place among the contexts that were expected; for any thread."""
        self.session.cancel(caller, self.number)
