# SPDX-License-Identifier: Apache-2.0
"""Reads `dovetail.yaml`, the file that says what is in a bundle, into checked values. Touches no other file.

    name: digits                     # required: name to push it under
    model: model.onnx                # required; all paths are relative to the bundle and stay inside it
    program: program.pt2             # what torch.export captured, beside the model; written by dovetail.export
    reference: reference.npz         # what the native module answers on examples; written by dovetail.export
    external_data: [weights.bin]     # files that the model names as external data
    calibration: calibration.npz     # .npz, or a folder with one .npy for each input
    validation: validation           # the same, with labels if there are any
    policy:
      task: classification           # regression, embedding, detection, generic
      label_array: label
      output: logits
      max_metric_drop: 0.01          # a fraction
      tolerances: {min_snr_db: 25}   # thresholds of the gate instead of the defaults
    ranges:                          # free dimensions: input -> axis -> least, usual, largest size
      image: {0: [1, 1, 32]}
    signature:                       # a model with another one is refused; each side may be left out
      inputs: [{name: image, datatype: FP32, shape: [-1, 1, 8, 8]}]
      outputs: [{name: logits, datatype: FP32, shape: [-1, 10]}]

Keys that are not known are refused, so that a misspelt one is not lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from dovetail.accuracy import AccuracyPolicy
from dovetail.client.bundle_yaml import parse_yaml
from dovetail.client.push import UNNAMED_LABELS
from dovetail.digest import check_name
from dovetail.errors import InvalidInputError
from dovetail.gate import check_tolerances
from dovetail.ranges import DimRange
from dovetail.tensor import TensorSpec

BUNDLE_FILE = "dovetail.yaml"

_KEYS = (
    "name", "model", "program", "reference", "external_data", "calibration", "validation", "policy", "ranges",
    "signature",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BundleSpec:
    """What a bundle says of itself; paths are as written, checked to stay inside.

    Attributes:
        name: Name to push it under.
        model: The .onnx file.
        external_data: Files that the model names as external data.
        calibration: .npz or folder; "" if there is none.
        validation: .npz or folder; "" if there is none.
        policy: How accuracy is judged; its label array is "" if none is named.
        ranges: Sizes of free dimensions.
        inputs: Inputs that the model must have; empty: any.
        outputs: Outputs that the model must have; empty: any.
        program: The .pt2 file; "" if there is none.
        reference: .npz; "" if there is none.
    """

    name: str
    model: str
    external_data: tuple[str, ...] = ()
    calibration: str = ""
    validation: str = ""
    policy: AccuracyPolicy = UNNAMED_LABELS
    ranges: tuple[DimRange, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    program: str = ""
    reference: str = ""


def read_bundle_file(data: bytes) -> BundleSpec:
    """Read the file's bytes.

    Raises:
        InvalidInputError: Not YAML, an unknown or missing key, a value of the wrong type, or a path that leaves the
            bundle; the text names it.
        UnsupportedError: PyYAML is not installed.
    """
    document = _Section(parse_yaml(data, BUNDLE_FILE), "")
    document.allow(*_KEYS)
    signature = document.section("signature")
    signature.allow("inputs", "outputs")
    return BundleSpec(
        name=check_name(document.text("name", required=True), f"{BUNDLE_FILE}: name"),
        model=_path(document.text("model", required=True), "model"),
        external_data=tuple(_path(item, "external_data") for item in document.texts("external_data")),
        calibration=_path(document.text("calibration"), "calibration"),
        validation=_path(document.text("validation"), "validation"),
        policy=_policy(document.section("policy")),
        ranges=_ranges(document.section("ranges")),
        inputs=_specs(signature, "inputs"),
        outputs=_specs(signature, "outputs"),
        program=_path(document.text("program"), "program"),
        reference=_path(document.text("reference"), "reference"),
    )


class _Section:
    """A mapping of the file with typed reading; `where` is its key for messages, "" for the top."""

    def __init__(self, value: object, where: str) -> None:
        self._where = where
        if not isinstance(value, Mapping) or not all(isinstance(key, str | int) for key in value):
            raise wrong(where or "the file", value, "a mapping of keys to values")
        self.values: Mapping[Any, object] = value

    def allow(self, *known: str) -> None:
        """Refuse any other key."""
        for key in self.values:
            if key not in known:
                place = f" in {self._where}" if self._where else ""
                raise InvalidInputError(
                    f"{BUNDLE_FILE}: key {str(key)[:80]!r}{place} is not known; expected {', '.join(known)}"
                )

    def key(self, name: str) -> str:
        """Full name of a key, for messages."""
        return f"{self._where}.{name}" if self._where else name

    def text(self, name: str, *, required: bool = False) -> str:
        """A text; "" if it is absent."""
        value = self.values.get(name)
        if value is None and not required:
            return ""
        if value is None:
            raise InvalidInputError(f"{BUNDLE_FILE}: key {self.key(name)!r} is missing")
        if not isinstance(value, str) or not value:
            raise wrong(self.key(name), value, "a text that is not empty")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts; empty if it is absent."""
        return [
            item if isinstance(item, str) and item else _refuse(self.key(name), item, "a list of texts")
            for item in self.items(name)
        ]

    def items(self, name: str) -> Sequence[object]:
        """A list; empty if it is absent."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise wrong(self.key(name), value, "a list")
        return value

    def section(self, name: str) -> _Section:
        """A mapping; empty if it is absent."""
        value = self.values.get(name)
        return _Section({} if value is None else value, self.key(name))


def wrong(key: str, value: object, expected: str) -> InvalidInputError:
    """The error for a value of the wrong type. The value itself is not shown: YAML aliases can make it endless."""
    hint = ""
    if isinstance(value, str) and expected.startswith("a number"):
        hint = "; YAML takes 1e-3 for text, write 0.001"
    return InvalidInputError(f"{BUNDLE_FILE}: {key} is of type {type(value).__name__}; expected {expected}{hint}")


def _refuse(key: str, value: object, expected: str) -> str:
    raise wrong(key, value, expected)


def _path(text: str, key: str) -> str:
    """The path unchanged, if it stays inside the bundle on every system."""
    parts = PurePosixPath(text).parts
    if text.startswith("/") or ".." in parts or "\\" in text or "\0" in text or PureWindowsPath(text).drive:
        raise InvalidInputError(
            f"{BUNDLE_FILE}: {key} names {text[:200]!r}, which leaves the bundle; use a path relative to {BUNDLE_FILE}"
            " without '..'"
        )
    return PurePosixPath(text).as_posix() if text else ""


def _policy(section: _Section) -> AccuracyPolicy:
    section.allow("task", "label_array", "output", "max_metric_drop", "tolerances")
    tolerances = section.section("tolerances")
    drop = section.values.get("max_metric_drop")
    policy = AccuracyPolicy(
        task=section.text("task"),
        label_array=section.text("label_array"),
        max_metric_drop=None if drop is None else _number(drop, "policy.max_metric_drop"),
        output=section.text("output"),
        tolerances={str(name): _number(value, tolerances.key(str(name))) for name, value in tolerances.values.items()},
    )
    check_tolerances(policy)
    return policy


def _ranges(section: _Section) -> tuple[DimRange, ...]:
    found = []
    for name in section.values:
        axes = section.section(name)
        for axis, sizes in axes.values.items():
            where = axes.key(str(axis))
            if not isinstance(axis, int) or isinstance(axis, bool):
                raise wrong(where, axis, "the number of an axis, from 0")
            if not isinstance(sizes, list) or len(sizes) != 3:
                raise wrong(where, sizes, "a list of three numbers: least, usual and largest size")
            found.append(DimRange(str(name), axis, *(_whole(size, where) for size in sizes)))
    return tuple(found)


def _specs(section: _Section, side: str) -> tuple[TensorSpec, ...]:
    specs = []
    for number, item in enumerate(section.items(side)):
        entry = _Section(item, f"{section.key(side)}[{number}]")
        entry.allow("name", "datatype", "shape")
        if "shape" not in entry.values:
            raise InvalidInputError(f"{BUNDLE_FILE}: key {entry.key('shape')!r} is missing")
        shape = tuple(_whole(size, entry.key("shape")) for size in entry.items("shape"))
        specs.append(TensorSpec(entry.text("name", required=True), entry.text("datatype", required=True), shape))
    return tuple(specs)


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(where, value, "a number")
    return float(value)


def _whole(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(where, value, "whole numbers")
    return value
