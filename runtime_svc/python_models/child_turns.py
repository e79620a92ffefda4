# SPDX-License-Identifier: Apache-2.0
"""The requests of an iterative model that are under way in its process, and a run of some of them.

The node says which requests have a turn by their numbers; tensors come with the first turn only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from dovetail.errors import DovetailError, EngineError, brief
from dovetail.tensor import Array
from runtime_svc.python_models.control_page import SeenControlPage
from runtime_svc.python_models.open_request import OpenRequest
from runtime_svc.python_models.user_model import UserModel
from runtime_svc.python_models.user_objects import Sequence


class OpenRequests:
    """See the module.

    Args:
        model: Whose they are.
        page: Tells which callers have left.
    """

    def __init__(self, model: UserModel, page: SeenControlPage) -> None:
        self._model = model
        self._page = page
        self._open: dict[int, OpenRequest] = {}

    def run(self, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> tuple[list[Any], dict[str, Array]]:
        """A turn of the requests that a message names.

        Args:
            header: Of the message.
            arrays: Inputs of new requests, as `<place among the new ones>/<name>`.

        Returns:
            For each request whether it wants another turn, how many replies it has, and its error; and the outputs,
            as `<place of the request>/<place of the reply>/<name>`.

        Raises:
            Exception: Whatever the model's code raises; then all requests of the message are over.
        """
        for key in header["ended"]:
            self._open.pop(key, None)
        self._admit(header["new"], arrays)
        keys: list[int] = header["calls"]
        known = [self._open[key] for key in keys if key in self._open]
        for place, key in enumerate(keys):
            if key in self._open:
                self._open[key].begin_turn(partial(self._page.is_marked, header["number"], place))
        try:
            if known:
                self._model.turns(known)
        except BaseException:
            for key in keys:
                self._open.pop(key, None)
            raise
        return self._results(keys)

    def _admit(self, new: list[Any], arrays: Mapping[str, Array]) -> None:
        inputs: list[dict[str, Array]] = [{} for _ in new]
        for place_and_name, array in arrays.items():
            place, _, name = place_and_name.partition("/")
            inputs[int(place)][name] = array
        now_s = time.monotonic()
        for (key, rows, remaining_s, sequence), own in zip(new, inputs, strict=True):
            self._open[key] = self._model.open_request(
                own,
                rows=rows,
                sequences=() if sequence is None else (Sequence(*sequence),),
                deadline_s=None if remaining_s is None else now_s + remaining_s,
            )

    def _results(self, keys: list[int]) -> tuple[list[Any], dict[str, Array]]:
        results: list[Any] = []
        outputs: dict[str, Array] = {}
        for place, key in enumerate(keys):
            request = self._open.get(key)
            if request is None:  # it began in a process that is gone
                results.append([False, 0, described(EngineError("its process is gone, and with it this request"))])
                continue
            replies, again, error = request.end_turn()
            results.append([again, len(replies), None if error is None else described(error)])
            for number, reply in enumerate(replies):
                for name, array in reply.items():
                    outputs[f"{place}/{number}/{name}"] = array
            if not again:
                del self._open[key]
        return results, outputs


def described(error: Exception) -> dict[str, object]:
    """An error in a message: its type and text, and its code if it is one of ours."""
    code = error.code.value if isinstance(error, DovetailError) else ""
    return {"type": type(error).__name__, "text": brief(str(error)), "code": code}
