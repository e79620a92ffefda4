# SPDX-License-Identifier: Apache-2.0
"""Train the demo digit classifier and write the files of this folder.

The script trains a small residual convolutional net on scikit-learn's
``load_digits`` (8x8 grey images of handwritten digits) and writes:

- ``digits.onnx``: input ``image`` float32 (batch, 1, 8, 8) with pixels in 0..1,
  output ``logits`` float32 (batch, 10). Batch normalisation is left unfused on
  purpose, so that a graph optimiser has something to fuse.
- ``calibration.npz``: ``image``, 128 samples taken from the training part.
- ``validation.npz``: ``image`` and ``label``, 256 samples not in training.
- ``heldout.npz``: ``image`` and ``label``, the samples in neither of the two.

It needs no download: the data comes with scikit-learn. To run it::

    pip install torch scikit-learn onnx onnxruntime numpy
    python examples/digits/train.py

The shipped files were made on a CPU with Python 3.11, torch 2.13.0,
scikit-learn 1.9.1, onnx 1.23.2, onnxruntime 1.31.1 and numpy 2.4.6. The splits
depend on the seed alone; the trained weights may differ in their last bits on
another processor or with other versions.
"""

import argparse
import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10
SIDE = 8
CHANNELS = 96
CALIBRATION_SAMPLES = 128
VALIDATION_SAMPLES = 256
HELDOUT_SAMPLES = 341
BATCH_SIZE = 64
OPSET = 17
MAX_IR_VERSION = 10
MAX_MODEL_BYTES = 2_000_000

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images (n, 1, 8, 8) in 0..1 and their labels (n,)."""

    image: Images
    label: Labels

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: NDArray[np.intp]) -> "Split":
        return Split(self.image[rows], self.label[rows])

    def digests(self) -> set[bytes]:
        return {digest(image) for image in self.image}


@dataclass(frozen=True)
class Splits:
    """The training part, its calibration subset and the two unseen parts."""

    training: Split
    calibration: Split
    validation: Split
    heldout: Split


def digest(image: Images) -> bytes:
    """Content digest of one image."""
    return hashlib.sha256(image.tobytes()).digest()


def load_unique_digits() -> Split:
    """All digits, with every repeated image dropped after its first copy."""
    data = load_digits()
    image = (data.images / 16.0).astype(np.float32).reshape(-1, 1, SIDE, SIDE)
    first_row: dict[bytes, int] = {}
    for row, sample in enumerate(image):
        first_row.setdefault(digest(sample), row)
    rows = np.array(list(first_row.values()), dtype=np.intp)
    return Split(image, data.target.astype(np.int64)).take(rows)


def draw(split: Split, size: int, seed: int) -> tuple[Split, Split]:
    """Draw ``size`` stratified samples; return them and the rest."""
    rest, drawn = train_test_split(
        np.arange(len(split)),
        test_size=size,
        stratify=split.label,
        random_state=seed,
    )
    return split.take(drawn), split.take(rest)


def make_splits(seed: int) -> Splits:
    """Split the digits and check that nothing leaks from one part to another."""
    heldout, rest = draw(load_unique_digits(), HELDOUT_SAMPLES, seed)
    validation, training = draw(rest, VALIDATION_SAMPLES, seed)
    calibration, _ = draw(training, CALIBRATION_SAMPLES, seed)
    splits = Splits(training, calibration, validation, heldout)
    check_disjoint(splits)
    return splits


def check_disjoint(splits: Splits) -> None:
    """Fail unless the parts share no image, compared by content."""
    training = splits.training.digests()
    validation = splits.validation.digests()
    heldout = splits.heldout.digests()
    assert training.isdisjoint(validation), "training and validation overlap"
    assert training.isdisjoint(heldout), "training and heldout overlap"
    assert validation.isdisjoint(heldout), "validation and heldout overlap"
    assert splits.calibration.digests() <= training, "calibration not in training"


def conv_bn(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution without bias, then batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    )


class ResidualBlock(nn.Module):
    """Two convolutions whose result is added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_bn(channels, channels)
        self.second = conv_bn(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(functional.relu(self.first(x))))


class DigitNet(nn.Module):
    """Stem, two residual blocks, a strided convolution, pooling and a linear."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.stem = conv_bn(1, channels)
        self.block1 = ResidualBlock(channels)
        self.block2 = ResidualBlock(channels)
        self.down = conv_bn(channels, channels, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(self.stem(image))
        x = self.block2(self.block1(x))
        x = functional.relu(self.down(x))
        return self.head(torch.flatten(self.pool(x), 1))


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move every image by -1, 0 or 1 pixel each way, filling with zeros."""
    count = len(images)
    offset = torch.randint(0, 3, (2, count, 1), generator=generator)
    rows = offset[0] + torch.arange(SIDE)
    columns = offset[1] + torch.arange(SIDE)
    padded = functional.pad(images, (1, 1, 1, 1)).squeeze(1)
    sample = torch.arange(count)[:, None, None]
    return padded[sample, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def train(model: nn.Module, split: Split, epochs: int, seed: int) -> None:
    """Train in place, for a fixed number of epochs (nothing is selected)."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.from_numpy(split.image), torch.from_numpy(split.label)
    batches = len(split) // BATCH_SIZE
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=epochs * batches)
    model.train()
    for epoch in range(1, epochs + 1):
        order = torch.randperm(len(split), generator=generator)
        total = 0.0
        for rows in order[: batches * BATCH_SIZE].split(BATCH_SIZE):
            logits = model(shift(images[rows], generator))
            loss = functional.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch:3d}/{epochs}  loss {total / batches:.4f}", flush=True)
    model.eval()


def torch_logits(model: nn.Module, images: Images) -> Images:
    """Logits of the PyTorch model."""
    with torch.inference_mode():
        return model(torch.from_numpy(images)).numpy()


def accuracy(logits: Images, labels: Labels) -> float:
    """Share of samples whose largest logit is their label's."""
    return float((logits.argmax(axis=1) == labels).mean())


def export(model: nn.Module, path: Path) -> None:
    """Write the model as one ONNX file, batch normalisation kept as it is."""
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated, but it is the one that can
        # leave batch normalisation unfused.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        torch.onnx.export(
            model,
            (torch.zeros(2, 1, SIDE, SIDE),),
            path,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )
    exported = onnx.load(path)
    strip_notes(exported)
    onnx.save(exported, path)


def strip_notes(model: onnx.ModelProto) -> None:
    """Remove doc strings and metadata, which may hold paths of this machine."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    for item in [model, graph, *graph.node, *graph.initializer, *values]:
        item.ClearField("doc_string")
        item.ClearField("metadata_props")


def check_export(path: Path, model: nn.Module, heldout: Split) -> None:
    """Fail unless the ONNX file is valid and agrees with the PyTorch model."""
    exported = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(exported, full_check=True)
    assert exported.ir_version <= MAX_IR_VERSION, exported.ir_version
    assert path.stat().st_size < MAX_MODEL_BYTES, path.stat().st_size
    operators = [node.op_type for node in exported.graph.node]
    assert "BatchNormalization" in operators, "batch normalisation was folded"

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 32, len(heldout)):
        images = heldout.image[:batch]
        expected = torch_logits(model, images)
        (actual,) = session.run(["logits"], {"image": images})
        assert actual.shape == (batch, CLASSES), actual.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)
        assert (actual.argmax(axis=1) == expected.argmax(axis=1)).all()


def save_splits(splits: Splits, folder: Path) -> None:
    """Write the parts that are shipped, as plain arrays."""
    np.savez_compressed(folder / "calibration.npz", image=splits.calibration.image)
    for name in ("validation", "heldout"):
        split: Split = getattr(splits, name)
        np.savez_compressed(folder / f"{name}.npz", image=split.image, label=split.label)


def report(model: nn.Module, splits: Splits, path: Path) -> None:
    """Print the model's size and its accuracy on each part."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{path.name}: {path.stat().st_size} bytes, {parameters} parameters")
    for name in ("training", "calibration", "validation", "heldout"):
        split: Split = getattr(splits, name)
        score = accuracy(torch_logits(model, split.image), split.label)
        print(f"{name:12s} {len(split):5d} samples  accuracy {score:.2%}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo digit classifier.")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).resolve().parent,
        help="folder to write to (default: the script's own)",
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    # One thread: sums are then always taken in the same order.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(arguments.seed)

    splits = make_splits(arguments.seed)
    model = DigitNet()
    train(model, splits.training, arguments.epochs, arguments.seed)

    path = arguments.out / "digits.onnx"
    export(model, path)
    check_export(path, model, splits.heldout)
    save_splits(splits, arguments.out)
    report(model, splits, path)


if __name__ == "__main__":
    main()
