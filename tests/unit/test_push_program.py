# SPDX-License-Identifier: Apache-2.0
"""Programs on their way to the service: which role a file is sent in, and what a push may and may not bring."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from compiler_svc.intake.limits import ModelLimits
from compiler_svc.intake.model_intake import parse_model
from compiler_svc.intake.operator_scan import scan_backends
from compiler_svc.upload import UploadLimits, check_header
from dovetail.cli.documents import model_document
from dovetail.cli.tables import model_table
from dovetail.client.bundle import open_bundle
from dovetail.client.messages import read_model
from dovetail.client.push import PushOrder, is_program
from dovetail.errors import InvalidInputError, UnsupportedError
from dovetail.pb.v1 import registry_pb2 as pb
from tests.fakes.onnx_models import conv_net, save
from tests.fakes.program_files import archive, members


def bundle(folder: Path, text: str, **files: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "dovetail.yaml").write_text(text)
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def test_a_bundle_sends_program_and_reference_beside_the_model(tmp_path: Path) -> None:
    text = "name: net\nmodel: m.onnx\nprogram: p.pt2\nreference: r.npz\n"
    folder = bundle(tmp_path / "b", text, m__onnx=b"m", p__pt2=b"p", r__npz=b"r")

    files = open_bundle(folder, tmp_path).files()

    assert [(role, path.name) for role, path in files] == [
        (pb.FILE_ROLE_MODEL, "m.onnx"),
        (pb.FILE_ROLE_PROGRAM, "p.pt2"),
        (pb.FILE_ROLE_REFERENCE, "r.npz"),
    ]


def test_a_program_alone_is_sent_as_one_whatever_its_name(tmp_path: Path) -> None:
    path = archive(tmp_path / "model.bin", members())
    folder = bundle(tmp_path / "b", "name: net\nmodel: p.pt2\n", p__pt2=path.read_bytes())

    assert is_program(path)
    assert not is_program(save(conv_net(), tmp_path / "m.onnx"))
    assert [role for role, _ in PushOrder("net", path, program=path).files()] == [pb.FILE_ROLE_PROGRAM]
    assert [role for role, _ in open_bundle(folder, tmp_path).files()] == [pb.FILE_ROLE_PROGRAM]


@pytest.mark.parametrize("key", ["program", "reference"])
def test_a_program_or_reference_outside_of_the_bundle_is_refused(tmp_path: Path, key: str) -> None:
    folder = bundle(tmp_path / "b", f"name: net\nmodel: m.onnx\n{key}: ../x\n", m__onnx=b"m")

    with pytest.raises(InvalidInputError, match=rf"{key} names '../x', which leaves the bundle"):
        open_bundle(folder, tmp_path)


def test_a_pickle_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(pickle.dumps({}, protocol=2))

    with pytest.raises(InvalidInputError, match=r"m.pth: this is a pickle \(torch.save\), .* never opened"):
        is_program(tmp_path / "m.pth")
    with pytest.raises(InvalidInputError, match="this is a pickle"):
        parse_model(tmp_path / "m.pth", ModelLimits())
    with pytest.raises(InvalidInputError, match="an exported program of torch, pushed as an ONNX file"):
        parse_model(archive(tmp_path / "p.pt2", members()), ModelLimits())


def header(*roles: int) -> pb.PushHeader:
    files = [pb.PushFile(role=role, name="f", size_bytes=1, sha256="0" * 64) for role in roles]  # type: ignore[arg-type]
    return pb.PushHeader(name="net", files=files)


@pytest.mark.parametrize(
    ("roles", "text"),
    [
        ((pb.FILE_ROLE_REFERENCE,), "exactly one model file"),
        ((pb.FILE_ROLE_PROGRAM, pb.FILE_ROLE_PROGRAM), "exactly one model file"),
        ((pb.FILE_ROLE_MODEL, pb.FILE_ROLE_PROGRAM, pb.FILE_ROLE_PROGRAM), "at most one program file, this one has 2"),
        ((pb.FILE_ROLE_PROGRAM, pb.FILE_ROLE_REFERENCE), "a reference is pushed with the graph that it judges"),
        ((pb.FILE_ROLE_MODEL, pb.FILE_ROLE_WEIGHTS), "role 5, which this version does not know"),
    ],
)
def test_headers_that_make_no_model_are_refused(roles: tuple[int, ...], text: str) -> None:
    check_header(header(pb.FILE_ROLE_PROGRAM), UploadLimits())
    check_header(header(pb.FILE_ROLE_MODEL, pb.FILE_ROLE_PROGRAM, pb.FILE_ROLE_REFERENCE), UploadLimits())

    with pytest.raises(InvalidInputError, match=text):
        check_header(header(*roles), UploadLimits())


class Backend:
    """A backend that can build everything, or nothing."""

    def __init__(self, level: str, *, needs_program: bool = False) -> None:
        self.NEEDS_PROGRAM = needs_program
        self._level = level

    def missing(self) -> str:
        return ""

    def scan(self, model: Path) -> Any:
        from compiler_svc.backends.base import OperatorSupport

        return OperatorSupport(self._level == "supported")


def test_engines_that_compile_a_program_are_asked_only_if_there_is_one_and_never_save_a_graph(tmp_path: Path) -> None:
    compiling: Any = Backend("supported", needs_program=True)
    reading: Any = Backend("supported")
    refusing: Any = Backend("unsupported")

    without = scan_backends(tmp_path, {"a": reading, "p": compiling})
    beside = scan_backends(tmp_path, {"a": reading, "p": compiling}, program=True)

    assert [item.engine for item in without] == ["a"]
    assert [item.engine for item in beside] == ["a", "p"]
    with pytest.raises(UnsupportedError, match="no backend can build this model"):
        scan_backends(tmp_path, {"a": refusing, "p": compiling}, program=True)


def test_the_figures_of_an_export_are_shown_with_the_model() -> None:
    check = pb.ExportCheck(samples=3, min_cosine=1.0, snr_db=121.5, max_error=2e-7, exported_by="torch 2.13.0")
    model = read_model(pb.Model(name="net", version=1, program="2.13.0", export_check=check))

    column = model_table([model]).columns[-1]

    assert [column.header, *map(str, column.cells)] == ["exported", "torch 2.13.0, SNR 121.5 dB"]
    assert model_document(model)["program"] == "2.13.0"
    assert model_document(model)["export_check"]["snr_db"] == 121.5
    assert len(model_table([read_model(pb.Model(name="net"))]).columns) == len(model_table([model]).columns) - 1
