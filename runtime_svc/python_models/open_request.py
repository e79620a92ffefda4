# SPDX-License-Identifier: Apache-2.0
"""What the code of an iterative model is given: a request that may have many turns, and what it asks for in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dovetail.errors import EngineError
from dovetail.tensor import Array
from runtime_svc.python_models.user_objects import Caller, Request, Sequence

CheckReply = Callable[[object, Request], dict[str, Array]]
"""Outputs as the configuration says, or an EngineError that says what is wrong with them."""


class OpenRequest(Request):
    """One caller's request, the same object from its first turn to its last.

    It is over after a turn in which the model did not call `again`, when the caller has left or the deadline has
    passed, and with the first error. The model hears of that by not seeing it again: what hangs on `state` is let go.

    Attributes:
        state: The model's own; None on the first turn.
        turn: 0 on the first, and so on.
    """

    def __init__(
        self,
        inputs: Mapping[str, Array],
        *,
        rows: int,
        sequences: tuple[Sequence, ...],
        deadline_s: float | None,
        check: CheckReply,
        decoupled: bool,
    ) -> None:
        self._presence = _Presence()  # not the request itself: a ring of references would keep `state` alive
        caller = Caller(slice(0, rows), deadline_s, self._presence.has_left)
        super().__init__(inputs, rows=rows, sequences=sequences, callers=(caller,))
        self.state: Any = None
        self.turn = 0
        self._check, self._decoupled = check, decoupled
        self._replies: list[dict[str, Array]] = []
        self._again = False
        self._error: Exception | None = None

    def reply(self, outputs: Mapping[str, Any]) -> None:
        """Give a reply, which leaves when `infer` returns. A model that is not decoupled gives one, in the last turn.

        Args:
            outputs: By name, as `infer` of other models gives them.

        Raises:
            EngineError: It is not what the configuration says, or a second one of a model that is not decoupled.
        """
        if self._replies and not self._decoupled:
            raise EngineError("a second reply to a request, but the configuration does not say that it is decoupled")
        self._replies.append(self._check(outputs, self))

    def again(self) -> None:
        """Ask for another turn: `infer` is given this request once more, with whoever else has one then."""
        self._again = True

    def fail(self, error: Exception | str) -> None:
        """End this request with an error, after the replies it was given; the others in the batch go on."""
        self._error = error if isinstance(error, Exception) else EngineError(error)

    def begin_turn(self, has_left: Callable[[], bool]) -> None:
        """For the process: a turn begins, in which that says whether the caller is there."""
        self._presence.look = has_left

    def end_turn(self) -> tuple[list[dict[str, Array]], bool, Exception | None]:
        """For the process: the replies of this turn, whether there is another one, and the error if it failed."""
        replies, again, error = self._replies, self._again, self._error
        self.turn += 1
        self._replies, self._again = [], False
        if error is None and not self._decoupled and again and replies:
            error = EngineError("a reply and a call of again in one turn, but the model is not decoupled")
        if error is None and not self._decoupled and not again and not replies:
            error = EngineError("neither a reply nor a call of again, but the model is not decoupled")
        if error is not None and not self._decoupled:
            replies = []
        return replies, again and error is None, error


class _Presence:
    """Whether a caller has left, asked anew in each turn."""

    def __init__(self) -> None:
        self.look: Callable[[], bool] = lambda: False

    def has_left(self) -> bool:
        return self.look()
