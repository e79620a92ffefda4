# SPDX-License-Identifier: Apache-2.0
"""The example models as torch modules with the weights of their ONNX files, exported for `bench_torch`.

python -m tests.bench.torch_nets MODEL.onnx FOLDER

MODEL.onnx is what examples/digits, examples/resnet50 or examples/minilm wrote; which of them is told by its inputs.
FOLDER gets program.pt2 (as a service keeps it) and model.onnx (torch's own conversion of that program), both with a
free batch size, and the first inputs of validation.npz, without labels, if there is one beside the model.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from dovetail.program.archive import rewrite
from dovetail.program.onnx_form import write_onnx

Weights = Mapping[str, Tensor]
_MOST_ROWS = 64
_OPSET = 18
_SAMPLES = 32


def conv_bn(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps the size, and its batch normalisation."""
    return [nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut; names as in examples/digits."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*conv_bn(channels, channels, 3))
        self.second = nn.Sequential(*conv_bn(channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(functional.relu(self.first(x))))


class Digits(nn.Module):
    """The net of examples/digits."""

    def __init__(self, channels: int = 96) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(1, channels, 3))
        self.block1, self.block2 = Residual(channels), Residual(channels)
        self.down = nn.Sequential(*conv_bn(channels, channels, 3, 2))
        self.head = nn.Linear(channels, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.block2(self.block1(functional.relu(self.stem(image))))
        return self.head(functional.adaptive_avg_pool2d(functional.relu(self.down(x)), 1).flatten(1))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; names as in examples/resnet50."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        narrow, middle, wide = conv_bn(inputs, width, 1), conv_bn(width, width, 3, stride), conv_bn(width, 4 * width, 1)
        self.body = nn.Sequential(*narrow, nn.ReLU(), *middle, nn.ReLU(), *wide)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != 4 * width:
            self.shortcut = nn.Sequential(*conv_bn(inputs, 4 * width, 1, stride))

    def forward(self, images: Tensor) -> Tensor:
        return functional.relu(self.body(images) + self.shortcut(images))


class ResNet50(nn.Sequential):
    """The net of examples/resnet50."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [*conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        inputs = 64
        for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for index in range(depth):
                layers.append(Bottleneck(inputs, width, stride if index == 0 else 1))
                inputs = 4 * width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image)


class MiniLm(nn.Module):
    """The encoder of examples/minilm, from its ONNX file's weights; attention as torch users write it."""

    def __init__(self, weights: Weights, layers: int = 6, heads: int = 12) -> None:
        super().__init__()
        self.layers, self.heads = layers, heads
        for name, value in weights.items():
            if value.ndim and value.is_floating_point():
                self.register_buffer(name.replace(".", "_"), value)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        shown = attention_mask[:, None, None, :].bool()
        x = self._norm(
            "embeddings", functional.embedding(input_ids, self._of("word_embeddings")) + self._of("position_embeddings")
        )
        for layer in range(self.layers):
            x = self._norm(f"layer{layer}.attention", x + self._attention(f"layer{layer}", x, shown))
            wide = functional.gelu(self._linear(f"layer{layer}.wide", x))
            x = self._norm(f"layer{layer}.output", x + self._linear(f"layer{layer}.narrow", wide))
        mask = attention_mask[:, :, None].to(x.dtype)
        return functional.normalize((x * mask).sum(1) / mask.sum(1), dim=-1)

    def _attention(self, layer: str, x: Tensor, shown: Tensor) -> Tensor:
        query, key, value = (
            self._linear(f"{layer}.{name}", x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=shown)
        return self._linear(f"{layer}.projection", mixed.transpose(1, 2).flatten(2))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self._of(f"{name}.weight") + self._of(f"{name}.bias")

    def _norm(self, name: str, x: Tensor) -> Tensor:
        scale, shift = self._of(f"{name}.norm.weight"), self._of(f"{name}.norm.bias")
        return functional.layer_norm(x, (x.shape[-1],), scale, shift, 1e-12)

    def _of(self, name: str) -> Tensor:
        return self.get_buffer(name.replace(".", "_"))


def module_of(model: onnx.ModelProto) -> tuple[nn.Module, dict[str, Tensor], str]:
    """The module of an example's ONNX file, example inputs, and the name of its output."""
    weights = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in model.graph.initializer}
    inputs = {item.name: [size.dim_value for size in item.type.tensor_type.shape.dim] for item in model.graph.input}
    if "input_ids" in inputs:
        tokens = inputs["input_ids"][1]
        examples = {name: torch.ones(2, tokens, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
        return MiniLm(weights).eval(), examples, "sentence"  # torch calls the lookup "embedding"
    net: nn.Module = ResNet50() if inputs["image"][1] == 3 else Digits()
    net.load_state_dict(
        {**net.state_dict(), **{name: value for name, value in weights.items() if name in net.state_dict()}}
    )
    return net.eval(), {"image": torch.zeros(2, *inputs["image"][1:])}, "logits"


def export(model: Path, folder: Path) -> None:
    """Write the folder."""
    net, examples, output = module_of(onnx.load(str(model)))
    folder.mkdir(parents=True, exist_ok=True)
    rows = torch.export.Dim("rows", min=1, max=_MOST_ROWS)
    shapes = {name: {0: rows} for name in examples}
    program = torch.export.export(net, (), examples, dynamic_shapes=shapes)
    with tempfile.TemporaryDirectory() as scratch:
        torch.export.save(program, Path(scratch, "raw.pt2"))
        rewrite(Path(scratch, "raw.pt2"), folder / "program.pt2", max_bytes=4 << 30)
    write_onnx(program, folder / "model.onnx", opset=_OPSET, names=(output,))
    if (samples := model.with_name("validation.npz")).is_file():
        with np.load(samples, allow_pickle=False) as arrays:
            np.savez(folder / "validation.npz", **{name: arrays[name][:_SAMPLES] for name in examples})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="export an example model from torch")
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    export(chosen.model, chosen.folder)
