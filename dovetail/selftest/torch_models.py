# SPDX-License-Identifier: Apache-2.0
"""The self-test's two models as torch modules with the same weights, exported as a user would export his own.

What is compiled for AOTInductor is the program that torch captured, so it is made here, on the machine that is tested
and with its torch. Needs torch and the onnx package (to read the digits net's weights); imported only when called.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.accuracy import AccuracyPolicy
from dovetail.client.export import export
from dovetail.client.push import UNNAMED_LABELS
from dovetail.selftest.models import TestModel
from dovetail.selftest.transformer_block import HEADS, TOKENS, WIDTH, block_weights
from dovetail.tensor import Array

_EXAMPLES, _MAX_BATCH = 4, 64


def exported(model: TestModel, folder: Path) -> TestModel:
    """The same model with a bundle that holds its program. Blocks for seconds.

    Raises:
        UnsupportedError: torch or the onnx package is missing, or torch cannot capture the model.
    """
    import torch

    modules = {"digits": _digits, "block": _block}
    module = modules[model.name](torch, model.path).eval()
    examples = {name: torch.from_numpy(array[:_EXAMPLES].copy()) for name, array in model.probe.items()}
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    bundle = folder / f"{model.name}-bundle"
    labelled = AccuracyPolicy(task="classification", label_array="label")
    export(
        module,
        examples,
        dynamic_shapes={name: {0: batch} for name in examples},
        name=model.name,
        path=bundle,
        calibration=model.calibration,
        validation=model.validation,
        policy=labelled if model.task else UNNAMED_LABELS,
    )
    return TestModel(
        model.name, model.path, model.calibration, model.validation, model.task, model.probe, bundle=bundle
    )


def _digits(torch: Any, path: Path) -> Any:
    """The residual net of examples/digits, from the weights in its graph."""
    import onnx

    graph = onnx.load(str(path)).graph
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    functional = torch.nn.functional

    class Digits(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            _hold(self, torch, weights)

        def unit(self, images: Any, name: str, stride: int = 1) -> Any:
            out = functional.conv2d(images, _held(self, f"{name}.0.weight"), stride=stride, padding=1)
            moments = [_held(self, f"{name}.1.{word}") for word in ("running_mean", "running_var", "weight", "bias")]
            return functional.batch_norm(out, *moments, training=False, eps=1e-5)

        def forward(self, image: Any) -> Any:
            out = functional.relu(self.unit(image, "stem"))
            for block in ("block1", "block2"):
                inner = functional.relu(self.unit(out, f"{block}.first"))
                out = functional.relu(out + self.unit(inner, f"{block}.second"))
            out = functional.relu(self.unit(out, "down", stride=2))
            return functional.linear(out.mean(dim=(2, 3)), _held(self, "head.weight"), _held(self, "head.bias"))

    return Digits()


def _block(torch: Any, path: Path) -> Any:
    """The transformer block of `transformer_block`; its argument is called as the graph's input."""
    functional = torch.nn.functional

    class Block(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            _hold(self, torch, block_weights())

        def norm(self, values: Any, number: int) -> Any:
            gain, bias = (_held(self, f"{word}_{number}") for word in ("gain", "bias"))
            return functional.layer_norm(values, (WIDTH,), gain, bias)

        def heads(self, values: Any, name: str) -> Any:
            product = values @ _held(self, name)
            return product.reshape(-1, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)

        def forward(self, tokens: Any) -> Any:
            normal = self.norm(tokens, 1)
            query, key, value = (self.heads(normal, name) for name in ("query", "key", "value"))
            mixed = functional.scaled_dot_product_attention(query, key, value)
            out = tokens + mixed.transpose(1, 2).reshape(-1, TOKENS, WIDTH) @ _held(self, "projection")
            out = out + functional.gelu(self.norm(out, 2) @ _held(self, "up")) @ _held(self, "down")
            return out.mean(dim=1) @ _held(self, "head")

    return Block()


def _hold(module: Any, torch: Any, weights: Mapping[str, Array]) -> None:
    for name, array in weights.items():
        module.register_buffer(_attribute(name), torch.from_numpy(np.array(array)))


def _held(module: Any, name: str) -> Any:
    return getattr(module, _attribute(name))


def _attribute(name: str) -> str:
    """A weight's name as an attribute: torch allows no dots."""
    return f"held_{name.replace('.', '_')}"
