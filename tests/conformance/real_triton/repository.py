# SPDX-License-Identifier: Apache-2.0
"""The suite's models as a repository for Triton with its Python backend.

Every model is written as for our own server; what Triton reads otherwise is put beside: `config.pbtxt` with the same
content, and for a Python model of ours the adapter that runs it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from google.protobuf import json_format, text_format

from dovetail.pb import oip
from tests.conformance.own_server import WRITERS

UNFIT = ("simple_string_dyna_sequence",)  # its Python backend takes no text id as a control: it sees two texts in it
ADAPTER = Path(__file__).with_name("adapter.py")


def write_repository(folder: Path) -> None:
    """Write all models of the suite."""
    folder.mkdir(parents=True)
    for write in WRITERS:
        write(folder)
    for config in folder.glob("*/config.json"):
        document = json.loads(config.read_text())
        document.get("ensemble_scheduling", {}).pop("max_inflight_requests", None)  # newer than PyTriton's Triton
        if document["name"] in UNFIT:
            shutil.rmtree(config.parent)
            continue
        message = json_format.ParseDict(document, oip.ModelConfig())
        config.with_suffix(".pbtxt").write_text(text_format.MessageToString(message))
        config.unlink()
        for code in config.parent.glob("*/model.py"):
            code.rename(code.with_name("own_model.py"))
            shutil.copy(ADAPTER, code)


def write_backends(folder: Path, triton: Path) -> None:
    """Write the backends: Triton's own for Python, and one for ONNX files that is written in Python.

    Args:
        folder: Where; made.
        triton: The folder `tritonserver` of PyTriton.

    Source:
        Triton's Python backend, "Python-based backends": a folder of the backend's name with its `model.py`.
    """
    shutil.copytree(triton / "backends", folder)
    for stub in (triton / "python_backend_stubs/3.11").iterdir():
        shutil.copy(stub, folder / "python")
    (folder / "onnxruntime").mkdir()
    shutil.copy(ADAPTER, folder / "onnxruntime/model.py")
