# SPDX-License-Identifier: Apache-2.0
"""Opens a bundle, a folder or zip with `dovetail.yaml` and all that a push needs, and gives the push it stands for.

A bundle may come from somebody else (a pull request that CI pushes), so nothing outside of it is ever read: paths that
leave it are refused, by their names and by where their links lead.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dovetail.client.bundle_file import BUNDLE_FILE, BundleSpec, read_bundle_file
from dovetail.client.bundle_yaml import MAX_YAML_BYTES
from dovetail.client.bundle_zip import open_zip
from dovetail.client.push import PushOrder, is_program, unreadable
from dovetail.client.samples import sample_file
from dovetail.errors import InvalidInputError


def is_bundle(path: Path) -> bool:
    """True for what `open_bundle` takes: a folder, or a file that ends in .zip."""
    return path.is_dir() or path.suffix.lower() == ".zip"


def open_bundle(bundle: Path, scratch: Path, *, name: str = "") -> PushOrder:
    """Read a bundle. Blocks: unpacks a zip, and packs folders of .npy files.

    Args:
        bundle: Folder or zip.
        scratch: Private empty folder; the order's files may lie there until the push is over.
        name: Instead of the bundle's own name.

    Raises:
        InvalidInputError: Not a bundle, or a wrong one; the text says what.
        OverLimitError: The zip unpacks to too much.
        UnsupportedError: PyYAML is not installed.
    """
    try:
        if bundle.is_dir():
            spec, root = _read_folder(bundle), bundle
        elif bundle.is_file():
            root = scratch / "bundle"
            spec = _unpack(bundle, root)
        else:
            raise InvalidInputError(f"{bundle} is neither a folder nor a zip")
    except OSError as exc:
        raise unreadable(bundle, exc) from exc
    order = _order(spec, root, scratch)
    return replace(order, name=name) if name else order


def _read_folder(bundle: Path) -> BundleSpec:
    path = _inside(bundle, BUNDLE_FILE, BUNDLE_FILE)
    if not path.is_file():
        raise InvalidInputError(f"{bundle} has no {BUNDLE_FILE}, so it is no bundle")
    with path.open("rb") as file:
        return read_bundle_file(file.read(MAX_YAML_BYTES + 1))


def _unpack(bundle: Path, root: Path) -> BundleSpec:
    with open_zip(bundle) as archive:
        spec = read_bundle_file(archive.read(BUNDLE_FILE, MAX_YAML_BYTES))
        root.mkdir()
        named = (spec.model, *spec.external_data, spec.calibration, spec.validation, spec.program, spec.reference)
        archive.extract(set(named) - {""}, root)
    return spec


def _order(spec: BundleSpec, root: Path, scratch: Path) -> PushOrder:
    model = _file(root, spec.model, "model")
    program = _file(root, spec.program, "program") if spec.program else None
    return PushOrder(
        name=spec.name,
        model=model,
        external_data=tuple(_file(root, item, "external_data") for item in spec.external_data),
        calibration=_samples(root, spec.calibration, scratch, "calibration"),
        validation=_samples(root, spec.validation, scratch, "validation"),
        policy=spec.policy,
        ranges=spec.ranges,
        expected_inputs=spec.inputs,
        expected_outputs=spec.outputs,
        program=program or (model if is_program(model) else None),
        reference=_file(root, spec.reference, "reference") if spec.reference else None,
    )


def _samples(root: Path, written: str, scratch: Path, what: str) -> Path | None:
    if not written:
        return None
    path = _inside(root, written, what)
    if path.is_dir():
        for member in path.glob("*.npy"):
            _inside(root, f"{written}/{member.name}", what)
    elif not path.is_file():
        raise InvalidInputError(f"{BUNDLE_FILE}: {what} names {written!r}, which is not in the bundle")
    return sample_file(path, scratch / f"{what}.npz", what=what)


def _file(root: Path, written: str, key: str) -> Path:
    path = _inside(root, written, key)
    if not path.is_file():
        raise InvalidInputError(f"{BUNDLE_FILE}: {key} names {written!r}, which is not a file in the bundle")
    return path


def _inside(root: Path, written: str, key: str) -> Path:
    """The path as written, if it does not lead out of the bundle by a link."""
    path = root / written
    if not path.resolve().is_relative_to(root.resolve()):
        raise InvalidInputError(f"{BUNDLE_FILE}: {key} names {written!r}, a link that leads out of the bundle")
    return path
