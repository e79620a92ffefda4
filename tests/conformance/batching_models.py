# SPDX-License-Identifier: Apache-2.0
"""Models that tell how they were batched: an engine with a controllable delay, served under many configurations.

    python -m tests.conformance.batching_models FOLDER

adds them to a model repository; they are Python models, so they need our Python engine. Each gives `value` back
`delay_ms` later, and says for each row in which run of its process it was, of how many rows and of what width, and when
the run began and ended on the machine's monotonic clock. What each is served with, `CONFIGS` says.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

_CODE = """
import time
import numpy as np

class Model:
    def load(self, context):
        self.runs = 0

    def infer(self, request):
        began = time.monotonic()
        self.runs += 1
        value = request["value"]
        time.sleep(int(request["delay_ms"].max()) / 1000)
        ended, rows = time.monotonic(), len(value)
        told = {"run": self.runs, "rows": rows, "width": value.shape[1]}
        return {
            "value": value,
            **{name: np.full((rows, 1), number, np.int32) for name, number in told.items()},
            "began": np.full((rows, 1), began),
            "ended": np.full((rows, 1), ended),
        }
"""

_ONE_BY_ONE = {"max_batch_size": 1}
_LATE_MS = 200

CONFIGS: Mapping[str, Mapping[str, object]] = {
    "batching_plain": {"dynamic_batching": {}},
    "batching_preferred": {
        "dynamic_batching": {"preferred_batch_size": [4], "max_queue_delay_microseconds": 60_000_000}
    },
    "batching_delayed": {"dynamic_batching": {"max_queue_delay_microseconds": 300_000}},
    "batching_ordered": {
        **_ONE_BY_ONE,
        "dynamic_batching": {"preserve_ordering": True},
        "instance_group": [{"kind": "KIND_CPU", "count": 2}],
    },
    "batching_levels": {**_ONE_BY_ONE, "dynamic_batching": {"priority_levels": 3, "default_priority_level": 2}},
    "batching_bounded": {"dynamic_batching": {"default_queue_policy": {"max_queue_size": 2}}},
    "batching_reject": {
        "dynamic_batching": {
            "default_queue_policy": {"default_timeout_microseconds": 1000 * _LATE_MS, "allow_timeout_override": True}
        }
    },
    "batching_late": {
        **_ONE_BY_ONE,
        "dynamic_batching": {
            "default_queue_policy": {
                "timeout_action": "DELAY",
                "default_timeout_microseconds": 60_000_000,
                "allow_timeout_override": True,
            }
        },
    },
    "batching_padded": {"parameters": {"dovetail.allowed_batch_sizes": {"string_value": "[1, 4]"}}},
    "batching_split": {"max_batch_size": 4, "parameters": {"dovetail.split_oversize": {"string_value": "true"}}},
    "batching_buckets": {
        "parameters": {
            "dovetail.buckets": {
                "string_value": json.dumps(
                    {"axes": {"value": 1}, "sizes": [4, 8], "pad_values": {"value": -1}, "output_axes": {"value": 1}}
                )
            }
        }
    },
}
"""Model -> what its configuration has beside its inputs and outputs."""

BATCHING_NAMES = tuple(CONFIGS)


def write_batching(folder: Path) -> None:
    """Add all of them to a model repository."""
    for name, config in CONFIGS.items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(_CODE)
        document = {
            "name": name,
            "backend": "python",
            "max_batch_size": 8,
            "input": [
                {"name": "value", "data_type": "TYPE_FP32", "dims": [-1]},
                {"name": "delay_ms", "data_type": "TYPE_INT32", "dims": [1]},
            ],
            "output": [
                {"name": "value", "data_type": "TYPE_FP32", "dims": [-1]},
                *({"name": name, "data_type": "TYPE_INT32", "dims": [1]} for name in ("run", "rows", "width")),
                *({"name": name, "data_type": "TYPE_FP64", "dims": [1]} for name in ("began", "ended")),
            ],
            **config,
        }
        (folder / name / "config.json").write_text(json.dumps(document))


if __name__ == "__main__":
    write_batching(Path(sys.argv[1]))
