# SPDX-License-Identifier: Apache-2.0
"""Pipelines and cached models of the conformance suite, over the suite's other models.

    python -m tests.conformance.pipeline_models FOLDER

adds them to a Triton model repository; `config.pbtxt` and `config.json` say the same. What each is for:

* `chain`: adds and subtracts twice, one step after the other: sum = 2 a, difference = 2 b;
* `diamond`: two steps side by side, then one that takes from both;
* `text_chain`: strings through two identities;
* `failing_chain`: ends in `picky`, which fails for an index above 3;
* `slow_chain`: `slow` behind `slow`, not batched, one request at a time;
* `nested`: a pipeline in a pipeline;
* `cached`: adds and subtracts, with the response cache;
* `cached_chain`: a pipeline with the response cache.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from tests.conformance.models import MAX_BATCH_SIZE, MODELS, config_type


@dataclass(frozen=True, slots=True)
class Step:
    """A step: model, its inputs and outputs as `model's name = pipeline's tensor` pairs."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TestedPipeline:
    """A pipeline of the suite; tensors as name -> datatype and dims without the batch axis."""

    __test__ = False

    name: str
    max_batch_size: int
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]
    steps: Sequence[Step]
    cache: bool = False
    max_inflight_requests: int = 0

    def to_config(self) -> dict[str, object]:
        """Its configuration as JSON."""
        ensemble: dict[str, object] = {
            "step": [
                {
                    "model_name": step.model,
                    "model_version": -1,
                    "input_map": dict(step.inputs),
                    "output_map": dict(step.outputs),
                }
                for step in self.steps
            ]
        }
        if self.max_inflight_requests:
            ensemble["max_inflight_requests"] = self.max_inflight_requests
        return {
            "name": self.name,
            "platform": "ensemble",
            "max_batch_size": self.max_batch_size,
            "input": _tensors(self.inputs),
            "output": _tensors(self.outputs),
            "ensemble_scheduling": ensemble,
            **({"response_cache": {"enable": True}} if self.cache else {}),
        }


_FOUR = ("FP32", (4,))
_ADD = {"a": "a", "b": "b"}

PIPELINES: tuple[TestedPipeline, ...] = (
    TestedPipeline(
        "chain", MAX_BATCH_SIZE, {"a": _FOUR, "b": _FOUR}, {"sum": _FOUR, "difference": _FOUR},
        (
            Step("add_sub", _ADD, {"sum": "s", "difference": "d"}),
            Step("add_sub", {"a": "s", "b": "d"}, {"sum": "sum", "difference": "difference"}),
        ),
    ),
    TestedPipeline(
        "diamond", MAX_BATCH_SIZE, {"a": _FOUR, "b": _FOUR}, {"sum": _FOUR, "left": _FOUR},
        (
            Step("add_sub", {"a": "left", "b": "right"}, {"sum": "sum"}),
            Step("identity_fp32", {"x": "a"}, {"y": "left"}),
            Step("identity_fp32", {"x": "b"}, {"y": "right"}),
        ),
    ),
    TestedPipeline(
        "text_chain", MAX_BATCH_SIZE, {"text": ("BYTES", (-1,))}, {"same": ("BYTES", (-1,))},
        (Step("identity_bytes", {"x": "text"}, {"y": "t"}), Step("identity_bytes", {"x": "t"}, {"y": "same"})),
    ),
    TestedPipeline(
        "failing_chain", MAX_BATCH_SIZE, {"index": ("INT64", (1,))}, {"picked": ("FP32", (1,))},
        (
            Step("identity_int64", {"x": "index"}, {"y": "i"}),
            Step("picky", {"index": "i"}, {"picked": "picked"}),
        ),
    ),
    TestedPipeline(
        "slow_chain", 0, {"turns": ("INT64", (1,))}, {"done": ("FP32", (1,))},
        (Step("slow", {"turns": "turns"}, {"done": "done"}),), max_inflight_requests=1,
    ),
    TestedPipeline(
        "nested", MAX_BATCH_SIZE, {"a": _FOUR, "b": _FOUR}, {"twice": _FOUR},
        (
            Step("chain", _ADD, {"sum": "s", "difference": "d"}),
            Step("add_sub", {"a": "s", "b": "d"}, {"sum": "twice"}),
        ),
    ),
    TestedPipeline(
        "cached_chain", MAX_BATCH_SIZE, {"a": _FOUR, "b": _FOUR}, {"sum": _FOUR},
        (Step("add_sub", _ADD, {"sum": "sum"}),), cache=True,
    ),
)  # fmt: skip


PIPELINE_NAMES = (*(pipeline.name for pipeline in PIPELINES), "cached")
"""All models that `write_pipelines` adds."""


def write_pipelines(folder: Path) -> None:
    """Add all of them to a model repository."""
    for pipeline in PIPELINES:
        (folder / pipeline.name / "1").mkdir(parents=True)
        _write_config(folder / pipeline.name, pipeline.to_config())
    cached = next(model for model in MODELS if model.name == "add_sub")
    version = folder / "cached" / "1"
    version.mkdir(parents=True)
    onnx.save(cached.to_onnx(), version / "model.onnx")
    _write_config(folder / "cached", {**cached.to_config(), "name": "cached", "response_cache": {"enable": True}})


def _write_config(folder: Path, config: Mapping[str, object]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "config.pbtxt").write_text("\n".join(_pbtxt(config)) + "\n")


def _pbtxt(config: Mapping[str, object]) -> list[str]:
    """The same in protobuf's text form, as far as these configurations go."""
    lines = []
    for name, value in config.items():
        for each in value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]:
            if name.endswith("_map"):
                assert isinstance(each, dict)
                lines += [f'{name} {{ key: "{key}" value: "{text}" }}' for key, text in each.items()]
            elif isinstance(each, dict):
                lines.append(f"{name} {{ {' '.join(_pbtxt(each))} }}")
            elif isinstance(each, str) and name not in ("data_type", "kind"):
                lines.append(f'{name}: "{each}"')
            else:
                lines.append(f"{name}: {str(each).lower() if isinstance(each, bool) else each}")
    return lines


def _tensors(named: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[dict[str, object]]:
    return [
        {"name": name, "data_type": config_type(datatype), "dims": list(dims)}
        for name, (datatype, dims) in named.items()
    ]


if __name__ == "__main__":
    write_pipelines(Path(sys.argv[1]))
