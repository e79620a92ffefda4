# SPDX-License-Identifier: Apache-2.0
"""Archives of exported programs: what they may hold, what is refused and never read, and what is left when kept."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dovetail.errors import DovetailError, InvalidInputError, OverLimitError, UnsupportedError
from dovetail.program.archive import check_program, rewrite
from dovetail.program.graph_check import check_graph
from dovetail.program.kinds import FileKind, kind_of, refuse_unopenable
from tests.fakes.program_files import CONSTANTS, GRAPH, SAMPLES, WEIGHTS, archive, graph, members, tensor

ROOM = 1 << 20


def config(**tensors: Any) -> bytes:
    return json.dumps({"config": tensors}).encode()


def test_a_program_says_which_torch_exported_it(tmp_path: Path) -> None:
    facts = check_program(archive(tmp_path / "p.pt2", members()), max_bytes=ROOM)

    assert (facts.release, facts.left_out) == ("2.13.0", ())


def test_a_rewritten_program_has_no_sample_inputs_no_extra_files_no_guards_and_always_the_same_bytes(
    tmp_path: Path,
) -> None:
    guarded = json.dumps(graph(guards_code=["L['x'].size()[0] == 3"])).encode()
    contents = members(**{SAMPLES: pickle.dumps("anything"), "extra/notes.txt": b"n", GRAPH: guarded})
    first = archive(tmp_path / "a.pt2", contents)
    second = archive(tmp_path / "b.pt2", dict(reversed(contents.items())), root="other")

    facts = rewrite(first, tmp_path / "a2.pt2", max_bytes=ROOM)
    rewrite(second, tmp_path / "b2.pt2", max_bytes=ROOM)

    assert facts.left_out == ("sample inputs (a pickle)", "1 extra file")
    assert (tmp_path / "a2.pt2").read_bytes() == (tmp_path / "b2.pt2").read_bytes()
    with zipfile.ZipFile(tmp_path / "a2.pt2") as kept:
        assert kept.read(f"program/{SAMPLES}") == b""
        assert kept.read("program/data/weights/weight_0") == contents["data/weights/weight_0"]
        assert json.loads(kept.read(f"program/{GRAPH}")) == graph()
        assert not [name for name in kept.namelist() if "extra" in name or "serialization_id" in name]
    assert check_program(tmp_path / "a2.pt2", max_bytes=ROOM).left_out == ()


PICKLED = {
    "a weight": {WEIGHTS: config(weight=tensor(use_pickle=True))},
    "a constant": {CONSTANTS: config(c=tensor("tensor_0", use_pickle=True)), "data/constants/tensor_0": b"x"},
    "a custom object": {CONSTANTS: config(c=tensor("custom_obj_0")), "data/constants/custom_obj_0": b"x"},
    "an opaque object": {"data/constants/opaque_obj_0": b"x"},
    "weights of the old form": {"data/weights/model.pt": b"x"},
    "constants of the old form": {"data/constants/model.pt": b"x"},
}


@pytest.mark.parametrize("what", PICKLED)
def test_a_program_that_torch_would_unpickle_is_refused(tmp_path: Path, what: str) -> None:
    with pytest.raises(InvalidInputError, match=r"pickle, which runs code|is kept as a pickle"):
        check_program(archive(tmp_path / "p.pt2", members(**PICKLED[what])), max_bytes=ROOM)


BROKEN: dict[str, tuple[dict[str, bytes | None], type[DovetailError], str]] = {
    "no graph": ({GRAPH: None}, InvalidInputError, "'models/model.json' is missing"),
    "another model": ({GRAPH: None, "models/b.json": b"{}"}, InvalidInputError, "it holds models/b.json"),
    "no release": ({GRAPH: b"{}"}, InvalidInputError, "does not say which torch"),
    "no JSON": ({GRAPH: b"\xff"}, InvalidInputError, "not readable as JSON"),
    "deep JSON": ({GRAPH: b"[" * 100_000}, InvalidInputError, "not readable as JSON"),
    "an unknown member": ({"data/other": b"x"}, InvalidInputError, "none of an exported program's"),
    "compiled code": ({"data/aotinductor/model/a.so": b"x"}, InvalidInputError, "none of an exported program's"),
    "a weight elsewhere": ({WEIGHTS: config(w=tensor("../models/model.json"))}, InvalidInputError, "no such member"),
    "a missing weight": ({WEIGHTS: config(w=tensor("weight_7"))}, InvalidInputError, "no such member"),
    "a future archive": ({"archive_version": b"1"}, UnsupportedError, "archive_version is b'1'"),
    "another byte order": ({"byteorder": b"big"}, UnsupportedError, "byteorder is b'big'"),
    "too many bytes": ({"data/weights/weight_1": b"\0" * ROOM}, OverLimitError, "1048576 bytes, the limits"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_torch_would_not_have_written_is_refused(tmp_path: Path, what: str) -> None:
    changes, error, text = BROKEN[what]

    with pytest.raises(error, match=text):
        check_program(archive(tmp_path / "p.pt2", members(**changes)), max_bytes=ROOM)


@pytest.mark.parametrize("name", ["net/../../up", "net\\up", "/net/up"])
def test_names_that_leave_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "p.pt2", members())
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, b"x")

    with pytest.raises(InvalidInputError, match="leaves the archive"):
        check_program(path, max_bytes=ROOM)


def test_a_compressed_archive_is_refused_before_anything_unpacks(tmp_path: Path) -> None:
    bomb = members(**{"data/weights/weight_1": b"\0" * (ROOM // 2)})

    with pytest.raises(InvalidInputError, match="is compressed, which torch never does"):
        check_program(archive(tmp_path / "p.pt2", bomb, compression=zipfile.ZIP_DEFLATED), max_bytes=ROOM)


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "p.pt2", members(**{"data/weights/weight_1": b"\0" * 4000}))
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"net/data/weights/weight_0"))
    with zipfile.ZipFile(path) as file:
        large = file.getinfo("net/data/weights/weight_1")
    data[entry + 16 : entry + 20] = struct.pack("<I", large.CRC)
    data[entry + 20 : entry + 28] = struct.pack("<II", 4000, 4000)
    path.write_bytes(bytes(data))

    with pytest.raises(InvalidInputError, match="or overlap; it is damaged or crafted"):
        check_program(path, max_bytes=ROOM)


def test_a_program_in_two_folders_or_with_a_member_twice_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "p.pt2", members())
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("other/data/weights/weight_1", b"x")
    with pytest.raises(InvalidInputError, match="do not lie in one folder"):
        check_program(path, max_bytes=ROOM)

    with zipfile.ZipFile(path, "a") as file:
        file.writestr("other/data/weights/weight_0", b"x")
    with pytest.raises(InvalidInputError, match="two members are called 'data/weights/weight_0'"):
        check_program(path, max_bytes=ROOM)


@pytest.mark.parametrize(
    "size",
    ["s77", "Mul(Integer(16), Symbol('s27', positive=True, integer=True))", "Max(1, FloorDiv(s0 - 1, 2)) + 1"],
)
def test_sizes_as_torch_writes_them_are_taken(size: str) -> None:
    check_graph({"sizes": [{"as_expr": {"expr_str": size, "hint": None}}]})


@pytest.mark.parametrize(
    "size",
    [
        "__import__('os').system('true')",
        "sympify('open')",
        "exec('x')",
        "(1).real",
        "[x for x in y]",
        "lambda: 0",
        "s" * 5000,
    ],
)
def test_sizes_that_are_python_are_refused(size: str) -> None:
    with pytest.raises(InvalidInputError, match="no expression of sizes"):
        check_graph({"sizes": [{"as_expr": {"expr_str": size, "hint": None}}]})


@pytest.mark.parametrize(
    "target", ["torch.ops.aten.linear.default", "_operator.getitem", "torch.ops.aten.__and__.Scalar"]
)
def test_operators_are_taken(target: str) -> None:
    check_graph({"nodes": [{"target": target, "inputs": []}]})


@pytest.mark.parametrize(
    "target",
    [
        "torch.load",
        "torch.ops.load_library",
        "torch.ops.aten.__class__.mro",
        "torch.serialization.load",
        "_operator.attrgetter",
        "#ext",
        "print",
    ],
)
def test_nodes_that_call_anything_else_are_refused(target: str) -> None:
    with pytest.raises(InvalidInputError, match="no operator of torch"):
        check_graph({"nodes": [{"target": target, "inputs": []}]})


def test_names_of_weights_are_not_taken_for_calls_and_imported_types_are_refused() -> None:
    check_graph({"signature": {"input_specs": [{"parameter": {"arg": {"name": "p"}, "target": "layer.weight"}}]}})

    with pytest.raises(InvalidInputError, match="a defaultdict or an enum"):
        check_graph({"in_spec": '[1, {"default_factory_module": "os"}]'})


def checkpoint(path: Path, *, script: bool = False) -> Path:
    extra = {"constants.pkl": b"x", "code/net.py": b"x"} if script else {}
    return archive(path, {"data.pkl": pickle.dumps({}), "version": b"3", **extra})


KINDS = {
    FileKind.PROGRAM: lambda path: archive(path, members()),
    FileKind.COMPILED: lambda path: archive(path, {"archive_format": b"pt2", "data/aotinductor/model/a.so": b"x"}),
    FileKind.OLD_PROGRAM: lambda path: archive(
        path, {"serialized_exported_program.json": b"{}", "version": b"5"}, root=""
    ),
    FileKind.TORCHSCRIPT: lambda path: checkpoint(path, script=True),
    FileKind.CHECKPOINT: checkpoint,
    FileKind.OTHER: lambda path: archive(path, {"a.txt": b"x"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_torch_are_told_apart_by_what_is_in_them(tmp_path: Path, kind: FileKind) -> None:
    path = KINDS[kind](tmp_path / "any.name")

    assert kind_of(path) is kind


def test_a_bare_pickle_is_a_checkpoint_and_every_kind_that_is_never_opened_says_what_to_do(tmp_path: Path) -> None:
    stream = io.BytesIO()
    pickle.Pickler(stream, protocol=2).dump({"weight": 1})
    (tmp_path / "m.pth").write_bytes(stream.getvalue())

    assert kind_of(tmp_path / "m.pth") is FileKind.CHECKPOINT
    for kind in (FileKind.CHECKPOINT, FileKind.TORCHSCRIPT, FileKind.OLD_PROGRAM):
        with pytest.raises(InvalidInputError, match=r"dovetail.export\(module"):
            refuse_unopenable(kind)
    with pytest.raises(InvalidInputError, match="push the program that it was compiled from"):
        refuse_unopenable(FileKind.COMPILED)
