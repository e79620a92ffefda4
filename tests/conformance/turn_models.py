# SPDX-License-Identifier: Apache-2.0
"""Models of the conformance suite whose requests belong to sequences and have any number of replies, or many turns.

    python -m tests.conformance.turn_models FOLDER

adds them to a Triton model repository; they need our Python engine. What each is for:

* `sequence_repeat`: direct and decoupled: INPUT replies to each request, OUTPUT counts the replies of the sequence;
  fails after them for a negative INPUT;
* `sequence_repeat_oldest`: the same with oldest and `preserve_ordering`, and the count is an implicit state;
* `iterative_sequence`: like Triton's backend of that name: a reply in each turn, OUTPUT = INPUT - 1 down to 0; an error
  of its own for a negative INPUT; with SHARED it is how many requests had the turn;
* `iterative_last`: not decoupled: one reply, OUTPUT = INPUT, after that many turns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

_REPEAT = """
import numpy as np

class Model:
    def load(self, context):
        self.counts = {}

    def infer(self, request):
        sequence = request.sequence
        count = 0 if sequence.start else self.counts[sequence.id]
        wanted = request["INPUT"].item()
        for _ in range(abs(wanted)):
            count += 1
            self.counts[sequence.id] = count
            yield {"OUTPUT": np.array([[count]], np.int32)}
        self.counts[sequence.id] = count
        if sequence.end:
            del self.counts[sequence.id]
        if wanted < 0:
            raise ValueError("after all")
"""

_REPEAT_STATE = """
class Model:
    def infer(self, request):
        count = request["COUNT_IN"]
        for _ in range(request["INPUT"].item()):
            count = count + 1
            yield {"OUTPUT": count, "COUNT_OUT": count}
"""

_COUNT_DOWN = """
import numpy as np

class Model:
    def infer(self, requests):
        for request in requests:
            if request.turn == 0:
                request.state = request["INPUT"].item()
            if request.state < 0:
                request.fail("less than nothing")
                continue
            request.state -= 1
            shown = len(requests) if "SHARED" in request else request.state
            request.reply({"OUTPUT": np.array([[shown]], np.int32)})
            if request.state > 0:
                request.again()
"""

_LAST = """
class Model:
    def infer(self, requests):
        for request in requests:
            if request.turn + 1 < request["INPUT"].item():
                request.again()
            else:
                request.reply({"OUTPUT": request["INPUT"]})
"""

_COUNT = {"data_type": "TYPE_INT32", "dims": [1]}
_STATE = {
    **_COUNT, "input_name": "COUNT_IN", "output_name": "COUNT_OUT",
    "initial_state": [{**_COUNT, "name": "none", "zero_data": True}],  # without it Triton begins with what is in memory
}  # fmt: skip
_DECOUPLED: Mapping[str, object] = {"model_transaction_policy": {"decoupled": True}}
_OLDEST = {"max_candidate_sequences": 16}
_LONG = {"max_sequence_idle_microseconds": 60_000_000}

TURN_NAMES = ("sequence_repeat", "sequence_repeat_oldest", "iterative_sequence", "iterative_last")
"""All models that `write_turns` adds."""


def write_turns(folder: Path) -> None:
    """Add all of them to a model repository."""
    ordered = {**_OLDEST, "preserve_ordering": True}
    direct, oldest = {"direct": {}, **_LONG}, {"oldest": ordered, "state": [_STATE], **_LONG}
    _write(folder, "sequence_repeat", _REPEAT, {"sequence_batching": direct, **_DECOUPLED})
    _write(folder, "sequence_repeat_oldest", _REPEAT_STATE, {"sequence_batching": oldest, **_DECOUPLED})
    iterative = {"sequence_batching": {"iterative_sequence": True, "oldest": _OLDEST}}
    _write(folder, "iterative_sequence", _COUNT_DOWN, {**iterative, **_DECOUPLED}, optional="SHARED")
    _write(folder, "iterative_last", _LAST, {"sequence_batching": {"iterative_sequence": True, "direct": {}}})


def _write(folder: Path, name: str, code: str, config: Mapping[str, object], *, optional: str = "") -> None:
    version = folder / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(code)
    tensor = {"data_type": "TYPE_INT32", "dims": [1]}
    inputs = [{"name": "INPUT", **tensor}, *([{"name": optional, "optional": True, **tensor}] if optional else [])]
    document = {
        "name": name, "backend": "python", "max_batch_size": 4, "input": inputs,
        "output": [{"name": "OUTPUT", **tensor}], **config,
    }  # fmt: skip
    (folder / name / "config.json").write_text(json.dumps(document))


if __name__ == "__main__":
    write_turns(Path(sys.argv[1]))
