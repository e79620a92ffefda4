# SPDX-License-Identifier: Apache-2.0
"""Generates the checked-in stubs from `protos/`, or with `--check` fails if they are not what would be generated.

    python -m dovetail.pb.generate [--check]

Needs the pinned grpcio-tools (extra `dev`) and a checkout. Our own contract becomes ordinary modules in
`dovetail/pb/v1/`. The Open Inference Protocol becomes one serialised descriptor set, `oip.binpb`, which
`dovetail.pb.oip_pb2` loads into a private pool: two files of package `inference` in the default pool would make
`import tritonclient.grpc` fail in the same process. Its messages' types become one stub file, `oip_pb2.pyi`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

OIP_FILES = ("model_config", "grpc_service")  # what is imported comes first
ROOT = Path(__file__).resolve().parents[2]
OUTPUTS = ("dovetail/pb/v1", "dovetail/pb/oip.binpb", "dovetail/pb/oip_pb2.pyi")


def generate(into: Path) -> None:
    """Write all outputs below a folder that stands for the repository's root."""
    from grpc_tools import protoc

    bundled = str(files("grpc_tools") / "_proto")
    ours = sorted((ROOT / "protos/dovetail/v1").glob("*.proto"))
    (into / "dovetail/pb/v1").mkdir(parents=True, exist_ok=True)
    _run(
        protoc.main,
        f"-Idovetail/pb={ROOT}/protos/dovetail",
        f"-I{bundled}",
        f"--python_out={into}",
        f"--pyi_out={into}",
        f"--grpc_python_out={into}",
        *(f"dovetail/pb/v1/{path.name}" for path in ours),
    )
    package = into / "dovetail/pb/v1/__init__.py"
    package.write_text('# SPDX-License-Identifier: Apache-2.0\n"""Generated from protos/dovetail/v1; do not edit."""\n')
    _generate_oip(into, bundled)


def _generate_oip(into: Path, bundled: str) -> None:
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as scratch:
        _run(
            protoc.main,
            f"-I{ROOT}/protos/inference",
            f"-I{bundled}",
            f"--descriptor_set_out={into}/dovetail/pb/oip.binpb",
            f"--pyi_out={scratch}",
            *(f"{name}.proto" for name in OIP_FILES),
        )
        stubs = [(Path(scratch) / f"{name}_pb2.pyi").read_text() for name in OIP_FILES]
    (into / "dovetail/pb/oip_pb2.pyi").write_text(_merge_stubs(stubs))


def _merge_stubs(stubs: list[str]) -> str:
    """One stub file from several: their imports first, references from one to another made local."""
    lines = [line for stub in stubs for line in stub.splitlines()]
    imports = sorted({line for line in lines if line.startswith(("from ", "import ")) and "_pb2 as _" not in line})
    body = [line for line in lines if not line.startswith(("from ", "import ", "DESCRIPTOR:"))]
    for name in OIP_FILES:
        body = [line.replace(f"_{name}_pb2.", "") for line in body]
    head = ["# SPDX-License-Identifier: Apache-2.0", "# Generated from protos/inference; do not edit.", *imports]
    return "\n".join(
        [*head, "from google.protobuf.descriptor_pb2 import FileDescriptorSet", "", "FILES: FileDescriptorSet"]
    ) + ("\n".join(body) + "\n")


def _run(main: object, *args: str) -> None:
    if main(["protoc", *args]) != 0:  # type: ignore[operator]
        sys.exit("protoc failed; its message is above")


def drift() -> list[str]:
    """Paths whose checked-in content differs from what would be generated now."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {str(p.relative_to(scratch)): p.read_bytes() for p in Path(scratch).rglob("*") if p.is_file()}
    checked_in = {
        str(path.relative_to(ROOT)): path.read_bytes()
        for output in OUTPUTS
        for path in _files(ROOT / output)
        if "__pycache__" not in path.parts
    }
    return sorted(name for name in fresh.keys() | checked_in.keys() if fresh.get(name) != checked_in.get(name))


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 on drift")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    stale = drift()
    if stale:
        sys.exit("stubs are not what protos/ says; run `make stubs`:\n  " + "\n  ".join(stale))


if __name__ == "__main__":
    main()
