# SPDX-License-Identifier: Apache-2.0
"""Train a ResNet-50 on sheets of digits and write it as ONNX, with images to judge it by.

No trained ResNet-50 comes in a package, and no hub is asked. So the net is trained here, on
scikit-learn's handwritten digits, 56 pixels wide. An image of 224 x 224 is a sheet of 16
equal digits, so what is learnt on one digit and on sheets of four, at a small part of the
cost, holds for it. The arithmetic is that of ResNet-50, operator by operator, and the
accuracy on held-out digits is a real one that quantisation can spoil.

Written into a folder:

- ``resnet50.onnx``: input ``image`` float32 (batch, 3, 224, 224), output ``logits``
  float32 (batch, 10); opset 17, batch normalisation left for the optimisers to fold.
- ``calibration.npz``: 64 images. ``validation.npz``: 256 other images and ``label``.

To run it (some minutes on two cores)::

    pip install torch numpy scikit-learn onnx
    python examples/resnet50/make.py FOLDER
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

SEED = 50
CLASSES, SIDE = 10, 224
TRAINING, CALIBRATION, VALIDATION = 1408, 64, 256
DIGIT = 56
LESSONS = ((DIGIT, 5, 1e-3), (2 * DIGIT, 1, 2e-4))
"""Side of the images, epochs and learning rate, one after the other."""

BATCH = 32

OPSET = 17


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut.

    Source: He et al. 2015, "Deep Residual Learning for Image Recognition", figure 5 and table 1.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        return functional.relu(self.body(images) + self.shortcut(images))


def resnet50() -> nn.Sequential:
    """The net with He-initialised convolutions."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    inputs = 64
    for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(depth):
            layers.append(Bottleneck(inputs, width, stride if index == 0 else 1))
            inputs = 4 * width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, Bottleneck):  # begins as the identity, which deep nets learn faster from
            nn.init.zeros_(module.body[-1].weight)
    return net


def sheets(images: Tensor, side: int = SIDE) -> Tensor:
    """8 x 8 grey digits as (n, 3, side, side): each enlarged to DIGIT and repeated over the sheet, around zero."""
    big = functional.interpolate(images, size=(DIGIT, DIGIT), mode="bilinear", align_corners=False)
    return (big.repeat(1, 3, side // DIGIT, side // DIGIT) - 0.3) / 0.35


def train(net: nn.Module, images: Tensor, labels: Tensor, side: int, epochs: int, rate: float) -> None:
    """Adam with a cosine schedule, on images of one size."""
    net.train()
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        if step % (len(images) // BATCH) == 0:
            order = torch.randperm(len(images))
        chosen = order[step % (len(images) // BATCH) * BATCH :][:BATCH]
        loss = functional.cross_entropy(net(sheets(images[chosen], side)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 11 == 0:
            print(f"{side} pixels, step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    net.eval()


@torch.no_grad()
def set_statistics(net: nn.Module, images: Tensor) -> None:
    """Set batch normalisation to the statistics of whole sheets, which have fewer edges."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # cumulative average
    net.train()
    for part in images.split(BATCH):
        net(sheets(part))
    net.eval()


def main() -> None:
    """Write everything into the folder given."""
    parser = argparse.ArgumentParser(description="train a ResNet-50 on digits and write it")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    data = load_digits()
    order = np.random.default_rng(SEED).permutation(len(data.target))
    images = torch.tensor(data.images[order] / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(data.target[order])
    net = resnet50()
    for side, epochs, rate in LESSONS:
        train(net, images[:TRAINING], labels[:TRAINING], side, epochs, rate)
    set_statistics(net, images[: 4 * BATCH])
    shown, truth = images[-VALIDATION:], labels[-VALIDATION:]
    with torch.no_grad():
        right = torch.cat([net(sheets(part)).argmax(1) for part in shown.split(32)]) == truth
    np.savez(folder / "calibration.npz", image=sheets(images[:CALIBRATION]).numpy())
    np.savez(folder / "validation.npz", image=sheets(shown).numpy(), label=truth.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (sheets(shown[:1]),), str(folder / "resnet50.onnx"), input_names=["image"], output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}}, opset_version=OPSET, dynamo=False,
            do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
    print(f"{folder}: {float(right.float().mean()):.1%} of {VALIDATION} validation images are right")


if __name__ == "__main__":
    main()
