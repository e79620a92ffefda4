# SPDX-License-Identifier: Apache-2.0
"""From a torch module to artifacts for this machine: export, push, compile.

    pip install 'dovetail[cli,torch]'
    dovetail up                                   # in another terminal, where no mesh is running yet
    python examples/torch_export/export.py        # writes the bundle "spirals", pushes and compiles it
    dovetail report spirals

The net tells two spirals apart; it is trained here in a few seconds, so that there are labels to judge by.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import torch
from torch import Tensor, nn

import dovetail
from dovetail.client import AccuracyPolicy
from dovetail.probe import measure


class Spirals(nn.Module):
    """Points of the plane (rows, 2) to the scores of two classes (rows, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2))

    def forward(self, point: Tensor) -> dict[str, Tensor]:
        return {"scores": self.layers(point)}


def points(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Points on two spirals, and which of them each is on."""
    random = torch.Generator().manual_seed(seed)
    turn = torch.rand(count, generator=random) * 9 + 1
    label = torch.randint(0, 2, (count,), generator=random)
    angle = turn + torch.pi * label
    noise = 0.1 * torch.randn(count, 2, generator=random)
    return torch.stack([turn * angle.cos(), turn * angle.sin()], dim=1) / 5 + noise / 5, label


def trained() -> nn.Module:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # so small a net is not faster with more
    net = Spirals()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    point, label = points(1000, seed=1)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(point)["scores"], label).backward()
        optimizer.step()
    return net.eval()  # a module in training mode is refused


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", default="127.0.0.1:7001", help="the compiler service")
    parser.add_argument("--path", type=Path, default=Path("spirals"), help="folder of the bundle")
    parser.add_argument("--no-push", action="store_true", help="only write the bundle")
    options = parser.parse_args()

    calibration, _ = points(200, seed=2)
    validation, labels = points(1000, seed=3)
    exported = dovetail.export(
        trained(),
        (calibration[:2],),
        dynamic_shapes={"point": {0: torch.export.Dim("rows", min=1, max=64)}},
        name="spirals",
        path=options.path,
        calibration=({"point": row.numpy()} for row in calibration),
        validation=(
            {"point": row.numpy(), "label": label.numpy()} for row, label in zip(validation, labels, strict=True)
        ),
        policy=AccuracyPolicy(task="classification", output="scores"),
        overwrite=True,
    )
    print(exported)
    if options.no_push:
        return
    with dovetail.connect(options.server) as client:
        pushed = client.push_bundle(exported.path)
        print(f"pushed {pushed.model.name} version {pushed.model.version}")
        for build in client.build_all("spirals", fingerprint=asyncio.run(measure())):
            drop = f", accuracy lost {build.gate.metric_drop}" if build.gate else ""
            print(f"{build.recipe.name}: {build.phase}{drop}")


if __name__ == "__main__":
    main()
