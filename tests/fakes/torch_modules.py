# SPDX-License-Identifier: Apache-2.0
"""Small torch modules that can be exported, and some that cannot, each for one reason. Weights are seeded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class SmallNet(nn.Module):
    """A convolution and a classifier over images of (batch, 1, 8, 8); two outputs by name."""

    def __init__(self, *, seed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4 * 64, 10)

    def forward(self, image: Tensor) -> Mapping[str, Tensor]:
        logits = self.head(self.features(image).flatten(1))
        return {"logits": logits, "label": logits.argmax(1)}


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x


class DecidesByValues(nn.Module):
    """A part of it takes one of two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Branch()

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x)


class FixedRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(8, 4) + 1


class LeavesTorch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * 2)


class NoOnnxForm(nn.Module):
    """Two operators for which ONNX has nothing."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        roots = torch.linalg.eigvals(x).real
        return roots, torch.special.bessel_j0(x)


class Counting(nn.Module):
    """Keeps state between calls that its answer does not show."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x * 2


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(3, 3)


def images(rows: int = 2, *, seed: int = 1) -> Tensor:
    """Images that SmallNet takes."""
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def batches() -> Any:
    """dynamic_shapes of SmallNet: 1 to 16 rows."""
    return {"image": {0: torch.export.Dim("batch", min=1, max=16)}}
