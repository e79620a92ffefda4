# SPDX-License-Identifier: Apache-2.0
"""From torch to an artifact through the real service: bundles, bare programs, and what nobody should open."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc.aio
import numpy as np
import onnx
import pytest
import torch

import dovetail
from compiler_svc.worker.build_spec import RESULT_FILE, IntakeSpec
from compiler_svc.worker.child_failure import ChildFailure
from compiler_svc.worker.sandbox import run_intake, run_task
from dovetail.client import BuildPhase
from dovetail.client.async_client import AsyncClient
from dovetail.client.export import Exported
from dovetail.engines import SessionOptions, create_engine
from dovetail.errors import ErrorCode, InvalidInputError
from dovetail.pb.v1.registry_pb2 import FILE_ROLE_PROGRAM, FILE_ROLE_REFERENCE
from dovetail.probe import measure
from dovetail.ranges import DimRange
from tests.fakes.child_orders import LIMITS, silent
from tests.fakes.compiler_mesh import Mesh, compiler_mesh, worker
from tests.fakes.torch_modules import SmallNet, batches, images

pytestmark = pytest.mark.xdist_group("torch")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("torch") / "net"
    samples = ({"image": row.numpy()} for row in images(24, seed=9))
    return dovetail.export(
        SmallNet().eval(), images(), dynamic_shapes=batches(), name="net", path=folder, validation=samples
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What plain torch saves, sample inputs included."""
    path = tmp_path_factory.mktemp("torch") / "net.pt2"
    torch.export.save(torch.export.export(SmallNet().eval(), (images(),), dynamic_shapes=batches()), path)
    return path


@pytest.fixture
async def mesh(redis_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with compiler_mesh(redis_url, tmp_path / "mesh") as running:
        yield running


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[AsyncClient]:
    async with dovetail.connect_async(f"127.0.0.1:{mesh.rpc.port}") as connected:
        yield connected


async def test_an_exported_module_is_built_gated_and_answers_as_it_did_in_torch(
    mesh: Mesh, client: AsyncClient, exported: Exported, tmp_path: Path
) -> None:
    machine = await measure()

    pushed = await client.push_bundle(exported.path)
    async with worker(mesh, machine):
        builds = await client.build_all("net", recipes=["ort-fp32", "openvino-fp32"], fingerprint=machine)
    artifacts = {item.manifest.recipe.name: item.manifest for item in await client.artifacts("net")}
    record = await mesh.storage.index.model("net", 0)

    assert [(build.phase, build.failure) for build in builds] == [(BuildPhase.READY, None)] * 2
    assert pushed.model.program == torch.__version__.partition("+")[0]
    check = pushed.model.export_check
    assert check is not None
    assert (check.samples, check.exported_by) == (3, exported.figures.exported_by)
    assert check.snr_db > 100
    assert (await client.model("net")).export_check == check
    assert FILE_ROLE_PROGRAM in {file.role for file in record.files}
    assert FILE_ROLE_REFERENCE not in {file.role for file in record.files}
    with torch.no_grad():
        native = SmallNet().eval()(images(5, seed=2))["logits"].numpy()
    for recipe, manifest in artifacts.items():
        assert manifest.labels["export_check"] == check.text
        files = await client.download(manifest.artifact_key, tmp_path / recipe)
        options = SessionOptions.of_contract(manifest.contract, threads=1, cpu_features=machine.facts.cpu_features)
        session = create_engine(manifest.recipe.engine).load(files, options)
        answer = session.run({"image": images(5, seed=2).numpy()})["logits"]
        session.close()
        assert np.allclose(answer, native, atol=1e-5)


async def test_a_bare_program_is_converted_and_proven_and_code_in_its_sample_inputs_never_runs(
    mesh: Mesh, client: AsyncClient, exported: Exported, program: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"

    bare = await client.push("bare", with_samples(program, marker, tmp_path / "a.pt2"))
    bundle = await client.push_bundle(exported.path)

    assert not marker.exists()
    assert bare.model.model_digest == bundle.model.model_digest
    assert bare.model.program == bundle.model.program
    assert bare.model.export_check is None  # nobody brought the module itself
    assert "left out: sample inputs (a pickle)" in bare.notes[0]
    assert "converted by torch" in bare.notes[1]
    assert "same results as the program: SNR" in bare.notes[1]
    record = await mesh.storage.index.model("bare", 0)
    assert [(item.input, item.axis, item.min, item.max) for item in record.model.ranges] == [("image", 0, 1, 16)]


async def test_another_program_beside_the_same_graph_is_a_new_version(client: AsyncClient, exported: Exported) -> None:
    alone = await client.push("net", exported.path / "model.onnx", validation=exported.path / "validation.npz",
                              ranges=[DimRange("image", 0, 1, 1, 16)])  # fmt: skip
    whole = await client.push_bundle(exported.path)
    again = await client.push_bundle(exported.path)

    assert alone.model.model_digest == whole.model.model_digest
    assert [item.model.version for item in (alone, whole, again)] == [1, 2, 2]


def tampered(exported: Exported, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    folder.mkdir()
    for file in exported.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    model = onnx.load(folder / "model.onnx")
    change(model)
    onnx.save(model, folder / "model.onnx")
    return folder


async def test_a_graph_that_is_not_the_modules_is_refused_with_figures(
    client: AsyncClient, exported: Exported, tmp_path: Path
) -> None:
    def other_weights(model: onnx.ModelProto) -> None:
        bias = next(item for item in model.graph.initializer if item.name == "head.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(np.linspace(0, 0.1, 10, dtype=np.float32), bias.name))

    text = r"not the module that it was exported from: output 'logits' on example 1: cosine 0\.\d+, SNR \d+\.\d dB"
    with pytest.raises(InvalidInputError, match=text):
        await client.push_bundle(tampered(exported, tmp_path / "net", other_weights))
    assert await client.models() == ()


async def test_a_program_beside_a_graph_without_its_reference_is_refused(mesh: Mesh, exported: Exported) -> None:
    files = [
        (name, (exported.path / file).read_bytes())
        for name, file in (("model", "model.onnx"), ("program", "program.pt2"))
    ]

    with pytest.raises(grpc.aio.AioRpcError, match="nothing shows that they are the same"):
        await mesh.push("net", *files)


async def test_pickles_are_refused_by_client_and_service_and_never_loaded(
    mesh: Mesh, client: AsyncClient, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    torch.save({"weights": Payload(marker)}, tmp_path / "checkpoint.pt")
    data = (tmp_path / "checkpoint.pt").read_bytes()

    with pytest.raises(InvalidInputError, match=r"checkpoint.pt: this is a pickle \(torch.save\)"):
        await client.push("net", tmp_path / "checkpoint.pt")
    for role in ("model", "program"):
        with pytest.raises(grpc.aio.AioRpcError, match=r"never opened; .* export that with dovetail.export"):
            await mesh.push("net", (role, data))
    assert not marker.exists()


# --- programs made to run code --------------------------------------------------------------------------------------


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def crafted(program: Path, path: Path, **changes: bytes) -> Path:
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(path, "w") as target:
        for item in source.infolist():
            inner = item.filename.partition("/")[2]
            target.writestr(item.filename, changes.get(inner, source.read(item)))
    return path


def with_samples(program: Path, marker: Path, path: Path) -> Path:
    """torch loads sample inputs with restrictions, and when that fails, without."""
    stream = io.BytesIO()
    torch.save(((Payload(marker),), {}), stream)
    return crafted(program, path, **{"data/sample_inputs/model.pt": stream.getvalue()})


def with_weight(program: Path, marker: Path, path: Path) -> Path:
    with zipfile.ZipFile(program) as source:
        root = source.namelist()[0].partition("/")[0]
        config = json.loads(source.read(f"{root}/data/weights/model_weights_config.json"))
    next(iter(config["config"].values())).update(path_name="weight_0", use_pickle=True)
    stream = io.BytesIO()
    torch.save(Payload(marker), stream)
    name = "data/weights/model_weights_config.json"
    return crafted(program, path, **{name: json.dumps(config).encode(), "data/weights/weight_0": stream.getvalue()})


def with_graph(program: Path, path: Path, change: Callable[[str], str]) -> Path:
    with zipfile.ZipFile(program) as source:
        root = source.namelist()[0].partition("/")[0]
        graph = source.read(f"{root}/models/model.json").decode()
    return crafted(program, path, **{"models/model.json": change(graph).encode()})


def test_such_programs_do_run_code_where_torch_opens_them(program: Path, tmp_path: Path) -> None:
    """Otherwise the tests below would show nothing."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    size = f"__import__('pathlib').Path({str(third)!r}).touch() or 3"
    paths = [
        with_samples(program, first, tmp_path / "a.pt2"),
        with_weight(program, second, tmp_path / "b.pt2"),
        with_graph(program, tmp_path / "c.pt2", lambda text: evaluated(text, size)),
    ]

    for path in paths:
        with pytest.raises(Exception, match=r".*"):
            torch.export.load(path)

    assert [marker.exists() for marker in (first, second, third)] == [True, True, True]


def evaluated(graph: str, size: str) -> str:
    """The graph with this text for its first free size."""
    document = json.loads(graph)
    waiting = [document]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict) and "expr_str" in item:
            item["expr_str"] = size
            return json.dumps(document)
        waiting.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
    raise AssertionError("the graph has no free size")


@pytest.mark.parametrize("way", ["weight", "size", "call"])
async def test_code_elsewhere_is_refused_and_never_runs(
    client: AsyncClient, program: Path, tmp_path: Path, way: str
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "a.pt2"
    size = f"__import__('pathlib').Path({str(marker)!r}).touch() or 3"
    crafted_by = {
        "weight": lambda: with_weight(program, marker, path),
        "size": lambda: with_graph(program, path, lambda text: evaluated(text, size)),
        "call": lambda: with_graph(
            program, path, lambda text: text.replace("torch.ops.aten.relu.default", "torch.load")
        ),
    }

    with pytest.raises(InvalidInputError, match=r"program: .*(pickle|no expression of sizes|no operator of torch)"):
        await client.push("net", crafted_by[way]())

    assert not marker.exists()
    assert await client.models() == ()


async def test_what_the_checks_would_miss_cannot_leave_the_child(program: Path, tmp_path: Path) -> None:
    """The same code with the archive's checks switched off in the child: it runs there, and reaches nothing outside."""
    marker, inside = tmp_path / "marker", "ran"
    folder = tmp_path / "child"
    folder.mkdir()
    touched = [f"__import__('pathlib').Path({str(path)!r}).touch()" for path in (folder / inside, marker)]
    size = " or ".join([*touched, "3"])
    with_graph(program, folder / "net.pt2", lambda text: evaluated(text, size))
    spec = IntakeSpec(model_file="", program_file="net.pt2")
    outcome = await run_task(folder, spec, limits=LIMITS, on_progress=silent, threads=1, program=("-c", UNCHECKED))

    if "writing" not in json.loads((folder / RESULT_FILE).read_text())["confined"]:
        pytest.skip("this kernel or container does not let a child give up writing")
    assert isinstance(outcome, ChildFailure)
    assert outcome.error is ErrorCode.INVALID_INPUT
    assert (folder / inside).exists()
    assert not marker.exists()


UNCHECKED = """
import sys
from pathlib import Path
import dovetail.program.archive as archive
archive.check_graph = lambda document: None
from compiler_svc.worker.child import main
sys.exit(main(Path(sys.argv[1])))
"""


async def test_a_program_of_a_torch_that_is_not_here_says_so(program: Path, tmp_path: Path) -> None:
    with_graph(
        program,
        tmp_path / "net.pt2",
        lambda text: text.replace('"schema_version": {"major": 8', '"schema_version": {"major": 99'),
    )

    outcome = await run_intake(
        tmp_path, IntakeSpec(model_file="", program_file="net.pt2"), limits=LIMITS, on_progress=silent
    )

    assert isinstance(outcome, ChildFailure)
    assert "cannot read the program" in outcome.message
    assert "push the bundle that dovetail.export writes" in outcome.message
