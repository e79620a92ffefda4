# SPDX-License-Identifier: Apache-2.0
"""Writes an exported bundle: the folder appears whole, under its name, or not at all.

The form of `dovetail.yaml` is `bundle_file`'s business, which reads it.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.accuracy import AccuracyPolicy
from dovetail.client.bundle_file import BUNDLE_FILE, read_bundle_file
from dovetail.client.bundle_yaml import write_yaml
from dovetail.client.export_native import Example
from dovetail.client.samples import Samples, sample_file
from dovetail.errors import AlreadyExistsError, InvalidInputError
from dovetail.program.onnx_form import OnnxForm
from dovetail.program.reference import input_key, output_key
from dovetail.ranges import DimRange


@dataclass(frozen=True, slots=True)
class BundleParts:
    """What goes into a bundle beside the model and the program, which are written already.

    Attributes:
        name: Model name.
        form: The model.
        examples: Runs of the native module.
        ranges: Sizes of free dimensions.
        calibration: Samples, or None.
        validation: Samples, or None.
        policy: How accuracy is judged.
    """

    name: str
    form: OnnxForm
    examples: Sequence[Example]
    ranges: Sequence[DimRange]
    calibration: Samples | None
    validation: Samples | None
    policy: AccuracyPolicy

    def write(self, folder: Path) -> None:
        """Write samples, reference and `dovetail.yaml`.

        Raises:
            InvalidInputError: Samples that do not fit one another.
            UnsupportedError: PyYAML is not installed.
        """
        document: dict[str, Any] = {"name": self.name, "model": self.form.path.name, "program": "program.pt2"}
        self._write_reference(folder / "reference.npz")
        document["reference"] = "reference.npz"
        external = sorted(path.name for path in folder.glob(f"{self.form.path.name}.*"))
        if external:
            document["external_data"] = external
        for what, samples in (("calibration", self.calibration), ("validation", self.validation)):
            if samples is not None:
                document[what] = _placed(sample_file(samples, folder / f"{what}.npz", what=what), folder, what)
        if policy := _policy_document(self.policy):
            document["policy"] = policy
        for item in self.ranges:
            of = document.setdefault("ranges", {}).setdefault(item.input, {})
            of[item.axis] = [item.min, item.usual, item.max]
        data = write_yaml(document, BUNDLE_FILE)
        read_bundle_file(data)  # what cannot be pushed is not written
        (folder / BUNDLE_FILE).write_bytes(data)

    def _write_reference(self, path: Path) -> None:
        """An uncompressed .npz; written here, because numpy.savez takes some names for its own arguments."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for number, example in enumerate(self.examples, start=1):
                named = {input_key(number, name): array for name, array in example.inputs.items()}
                named |= {output_key(number, name): array for name, array in example.outputs.items()}
                for name, array in named.items():
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, array, allow_pickle=False)


@contextmanager
def new_bundle(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write into, which takes the target's place when the block ends well and is gone otherwise.

    Raises:
        AlreadyExistsError: Something is there, and it is not a bundle or must not be replaced.
        InvalidInputError: The folder cannot be written.
    """
    if target.exists() and not (overwrite and (target / BUNDLE_FILE).is_file()):
        advice = "pass overwrite=True to replace it" if (target / BUNDLE_FILE).is_file() else "it is no bundle"
        raise AlreadyExistsError(f"{target} is there already; choose another path ({advice})")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".partial", dir=target.parent))
    except OSError as exc:
        raise InvalidInputError(f"{target} cannot be written: {exc.strerror or exc}") from exc
    try:
        folder = scratch / "bundle"
        folder.mkdir()
        yield folder
        if target.exists():
            target.rename(scratch / "old")
        folder.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _placed(file: Path, folder: Path, what: str) -> str:
    """Name in the bundle of a sample file; one from elsewhere is copied."""
    if file.parent != folder:
        shutil.copyfile(file, folder / f"{what}.npz")
    return f"{what}.npz"


def _policy_document(policy: AccuracyPolicy) -> Mapping[str, Any]:
    found = {
        "task": policy.task,
        "label_array": policy.label_array,
        "output": policy.output,
        "max_metric_drop": policy.max_metric_drop,
        "tolerances": dict(policy.tolerances),
    }
    return {key: value for key, value in found.items() if value not in ("", None, {})}
