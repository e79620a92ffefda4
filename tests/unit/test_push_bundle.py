# SPDX-License-Identifier: Apache-2.0
"""Bundles: what dovetail.yaml may say, and that nothing in a folder or zip can reach outside of it or fill the disk."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dovetail.accuracy import AccuracyPolicy
from dovetail.client import bundle_yaml, bundle_zip
from dovetail.client.bundle import open_bundle
from dovetail.client.bundle_file import read_bundle_file
from dovetail.errors import DovetailError, InvalidInputError, OverLimitError
from dovetail.ranges import DimRange
from dovetail.tensor import TensorSpec

FULL = b"""
name: digits
model: net/model.onnx
external_data: [net/weights.bin]
calibration: calibration.npz
validation: validation
policy:
  task: classification
  label_array: class
  output: logits
  max_metric_drop: 0.02
  tolerances: {min_snr_db: 15}
ranges:
  image: {0: [1, 2, 32]}
signature:
  inputs: [{name: image, datatype: FP32, shape: [-1, 1, 8, 8]}]
  outputs: [{name: logits, datatype: FP32, shape: [-1, 10]}]
"""
SMALL = "name: digits\nmodel: model.onnx\n"


def files_of(folder: Path) -> None:
    """The files that FULL names."""
    (folder / "net").mkdir(parents=True)
    (folder / "validation").mkdir()
    (folder / "dovetail.yaml").write_bytes(FULL)
    (folder / "net" / "model.onnx").write_bytes(b"model")
    (folder / "net" / "weights.bin").write_bytes(b"weights")
    np.savez(folder / "calibration.npz", image=np.zeros((2, 1, 8, 8), np.float32))
    np.save(folder / "validation" / "image.npy", np.ones((3, 1, 8, 8), np.float32))
    np.save(folder / "validation" / "class.npy", np.arange(3))


def zip_of(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_and_a_zip_of_it_give_the_same_push(tmp_path: Path, scratch: Path, packed: bool) -> None:
    files_of(tmp_path / "bundle")
    bundle = zip_of(tmp_path / "bundle", tmp_path / "bundle.zip") if packed else tmp_path / "bundle"

    order = open_bundle(bundle, scratch)

    assert order.name == "digits"
    assert order.model.read_bytes() == b"model"
    assert [path.read_bytes() for path in order.external_data] == [b"weights"]
    assert order.external_data[0].parent == order.model.parent
    assert order.policy == AccuracyPolicy("classification", "class", 0.02, "logits", {"min_snr_db": 15.0})
    assert order.ranges == (DimRange("image", 0, 1, 2, 32),)
    assert order.expected_inputs == (TensorSpec("image", "FP32", (-1, 1, 8, 8)),)
    assert order.expected_outputs == (TensorSpec("logits", "FP32", (-1, 10)),)
    assert order.validation is not None
    with np.load(order.validation) as arrays:
        assert arrays["class"].tolist() == [0, 1, 2]
    assert order.calibration is not None
    assert order.calibration.name == "calibration.npz"


def test_the_least_bundle_is_a_name_and_a_model(tmp_path: Path, scratch: Path) -> None:
    (tmp_path / "dovetail.yaml").write_text(SMALL)
    (tmp_path / "model.onnx").write_bytes(b"model")

    order = open_bundle(tmp_path, scratch, name="other")

    assert (order.name, order.calibration, order.ranges) == ("other", None, ())
    assert order.policy.label_array == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: m.onnx", "key 'name' is missing"),
        ("name: digits", "key 'model' is missing"),
        (SMALL + "calibraton: c.npz", "key 'calibraton' is not known; expected name, model"),
        (SMALL + "policy: {tsk: generic}", "key 'tsk' in policy is not known"),
        (SMALL + "policy: {task: guessing}", "task 'guessing' is not one of"),
        (SMALL + "policy: classification", "policy is of type str; expected a mapping"),
        (SMALL + "policy: {max_metric_drop: 1e-2}", "expected a number; YAML takes 1e-3 for text, write 0.001"),
        (SMALL + "policy: {max_metric_drop: yes}", "policy.max_metric_drop is of type bool"),
        (SMALL + "policy: {max_metric_drop: .nan}", "expected a finite number"),
        (SMALL + "policy: {tolerances: {min_snr: 3}}", "tolerance 'min_snr' is not known"),
        (SMALL + "policy: {tolerances: [3]}", "policy.tolerances is of type list; expected a mapping"),
        (SMALL + "ranges: {x: {0: [1, 2]}}", "ranges.x.0 is of type list; expected a list of three numbers"),
        (SMALL + "ranges: {x: {0: [1, 2, big]}}", "ranges.x.0 is of type str; expected whole numbers"),
        (SMALL + "ranges: {x: {batch: [1, 2, 3]}}", "expected the number of an axis, from 0"),
        (SMALL + "ranges: {x: {0: [3, 2, 1]}}", "expected 1 <= min <= usual <= max"),
        (SMALL + "external_data: weights.bin", "external_data is of type str; expected a list"),
        (SMALL + "external_data: [3]", "external_data is of type int; expected a list of texts"),
        (SMALL + "signature: {inputs: [{name: x, datatype: FP32}]}", "key 'signature.inputs[0].shape' is missing"),
        (SMALL + "signature: {inputs: [{name: x, datatype: FP99, shape: []}]}", "datatype 'FP99'"),
        ("name: ../evil\nmodel: m.onnx", "name '../evil' is not allowed"),
        ("name: 3\nmodel: m.onnx", "name is of type int; expected a text"),
        ("name: a\nname: b\nmodel: m.onnx", "key 'name' is there twice"),
        ("- a list", "the file is of type list; expected a mapping"),
        ("", "the file is of type NoneType"),
        ("name: [", "not readable as YAML"),
        ("name: !!python/object/apply:os.system ['true']\nmodel: m", "not readable as YAML"),
        ("a: 1\n---\nb: 2", "not readable as YAML"),
        ("? {a: 1}\n: 2", "not readable as YAML"),
        ("\x00", "not readable as YAML"),
        ("name: &n [*n]\nmodel: m.onnx", "name is of type list; expected a text"),
    ],
)
def test_each_mistake_in_the_file_is_named(text: str, said: str) -> None:
    with pytest.raises(DovetailError) as refused:
        read_bundle_file(text.encode())

    assert said in str(refused.value)


@pytest.mark.parametrize("path", ["/etc/passwd", "../model.onnx", "a/../../b", "c:\\model.onnx", "c:model.onnx"])
@pytest.mark.parametrize("key", ["model", "calibration", "external_data"])
def test_a_path_that_leaves_the_bundle_is_refused_under_every_key(key: str, path: str) -> None:
    value = f"['{path}']" if key == "external_data" else f"'{path}'"
    text = f"name: digits\n{key}: {value}\n" + ("" if key == "model" else "model: m.onnx\n")

    with pytest.raises(InvalidInputError, match=f"{key} names .* which leaves the bundle"):
        read_bundle_file(text.encode())


def test_a_long_file_and_one_of_nested_aliases_are_refused_at_once() -> None:
    layers = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))

    with pytest.raises(OverLimitError, match="65536 bytes"):
        read_bundle_file(b"#" * (bundle_yaml.MAX_YAML_BYTES + 1))
    with pytest.raises(InvalidInputError, match="key 'a0' is not known"):
        read_bundle_file(f"a0: &a0 x\n{layers}\n".encode())
    with pytest.raises(InvalidInputError, match="more than 16 deep"):
        read_bundle_file(b"[" * 60_000)


def test_a_link_that_leads_out_of_a_folder_is_refused_for_files_and_single_arrays(
    tmp_path: Path, scratch: Path
) -> None:
    bundle = tmp_path / "bundle"
    files_of(bundle)
    np.save(tmp_path / "secret.npy", np.zeros(3))
    (bundle / "validation" / "extra.npy").symlink_to(tmp_path / "secret.npy")
    with pytest.raises(InvalidInputError, match=r"extra\.npy', a link that leads out of the bundle"):
        open_bundle(bundle, scratch)

    (bundle / "net" / "model.onnx").unlink()
    (bundle / "net" / "model.onnx").symlink_to(tmp_path / "secret.npy")
    with pytest.raises(InvalidInputError, match="model names .* a link that leads out of the bundle"):
        open_bundle(bundle, scratch)


def test_a_file_that_is_not_there_is_named(tmp_path: Path, scratch: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"has no dovetail\.yaml, so it is no bundle"):
        open_bundle(tmp_path, scratch)
    with pytest.raises(InvalidInputError, match="neither a folder nor a zip"):
        open_bundle(tmp_path / "nothing.zip", scratch)

    (tmp_path / "dovetail.yaml").write_text(SMALL)
    with pytest.raises(InvalidInputError, match=r"model names 'model\.onnx', which is not a file in the bundle"):
        open_bundle(tmp_path, scratch)

    (tmp_path / "model.onnx").write_bytes(b"model")
    (tmp_path / "dovetail.yaml").write_text(SMALL + "validation: v.npz")
    with pytest.raises(InvalidInputError, match=r"validation names 'v\.npz', which is not in the bundle"):
        open_bundle(tmp_path, scratch)


@pytest.mark.parametrize("name", ["/etc/cron.d/evil", "../evil", "a/../../evil", "..\\evil", "c:/evil"])
def test_a_zip_with_a_member_that_leaves_it_is_refused_whole(tmp_path: Path, scratch: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("dovetail.yaml", SMALL)
        archive.writestr("model.onnx", b"model")
        archive.writestr(name, b"evil")

    with pytest.raises(InvalidInputError, match="leaves the archive; nothing was unpacked"):
        open_bundle(tmp_path / "b.zip", scratch)
    assert list(scratch.iterdir()) == []


def test_links_encrypted_and_repeated_members_of_a_zip_are_refused(tmp_path: Path, scratch: Path) -> None:
    link = zipfile.ZipInfo("model.onnx")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr("dovetail.yaml", SMALL)
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InvalidInputError, match="is a link or a device"):
        open_bundle(tmp_path / "link.zip", scratch)

    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("dovetail.yaml", SMALL)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("dovetail.yaml", SMALL)
    with pytest.raises(InvalidInputError, match=r"two members called 'dovetail\.yaml'"):
        open_bundle(tmp_path / "twice.zip", scratch)

    data = bytearray(zip_of_small(tmp_path / "locked.zip").read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    (tmp_path / "locked.zip").write_bytes(data)
    with pytest.raises(InvalidInputError, match="is encrypted"):
        open_bundle(tmp_path / "locked.zip", scratch)


def zip_of_small(path: Path, model: bytes = b"model") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dovetail.yaml", SMALL)
        archive.writestr("model.onnx", model)
    return path


def test_a_zip_bomb_is_stopped_by_what_comes_out_and_by_the_number_of_members(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = zip_of_small(tmp_path / "bomb.zip", b"\0" * (5 << 20))
    assert bomb.stat().st_size < 20_000
    monkeypatch.setattr(bundle_zip, "MAX_UNPACKED_BYTES", 2 << 20)
    with pytest.raises(OverLimitError, match="unpacks to more than 2097152 bytes"):
        open_bundle(bomb, scratch)
    assert sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file()) <= 2 << 20

    monkeypatch.setattr(bundle_zip, "MAX_MEMBERS", 1)
    with pytest.raises(OverLimitError, match="the zip has 2 members, at most 1"):
        open_bundle(bomb, scratch)


def test_only_what_the_file_names_is_unpacked(tmp_path: Path, scratch: Path) -> None:
    files_of(tmp_path / "bundle")
    (tmp_path / "bundle" / "large.bin").write_bytes(b"x" * 1000)
    open_bundle(zip_of(tmp_path / "bundle", tmp_path / "b.zip"), scratch)

    unpacked = {file.relative_to(scratch / "bundle").as_posix() for file in (scratch / "bundle").rglob("*.*")}

    assert unpacked == {
        "net/model.onnx", "net/weights.bin", "calibration.npz", "validation/image.npy", "validation/class.npy"
    }  # fmt: skip


def test_damaged_zips_and_zips_without_the_file_are_refused(tmp_path: Path, scratch: Path) -> None:
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(InvalidInputError, match="not a readable zip"):
        open_bundle(tmp_path / "text.zip", scratch)

    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(InvalidInputError, match=r"the zip has no dovetail\.yaml at its top"):
        open_bundle(tmp_path / "empty.zip", scratch)

    data = bytearray(zip_of_small(tmp_path / "flipped.zip", bytes(range(256)) * 40).read_bytes())
    place = data.index(b"model.onnx") + 40
    data[place : place + 20] = b"\xff" * 20
    (tmp_path / "flipped.zip").write_bytes(data)
    with pytest.raises(InvalidInputError, match="not a readable zip"):
        open_bundle(tmp_path / "flipped.zip", scratch)
