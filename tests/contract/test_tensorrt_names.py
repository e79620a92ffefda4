# SPDX-License-Identifier: Apache-2.0
"""Every name of TensorRT that our sources write down exists in the recorded bindings of both majors.

Calls are held against signatures where they are made, with `tests.fakes.strict_tensorrt`; this finds names on paths
that no test takes. What only one major has is asked for by `hasattr` or `getattr`, whose names are strings and not seen
here.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("compiler_svc/backends", "dovetail/engines")
    for path in sorted((ROOT / folder).glob("tensorrt_*.py"))
    if path.name != "tensorrt_kept.py"  # it never has the module, and calls something else by its name
]
MODULE_NAMES = {"library", "trt"}  # what our sources call the module
MODULE_ATTRIBUTES = {"_library", "_trt", "trt"}


def record(major: int) -> dict[str, Any]:
    return json.loads((ROOT / "tests" / "contract" / f"tensorrt_api_{major}.json").read_text())


def used(path: Path) -> Iterator[tuple[str, ...]]:
    """Dotted names behind the module: ("BuilderFlag", "TF32")."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        part: ast.AST = node
        while isinstance(part, ast.Attribute):
            names.insert(0, part.attr)
            part = part.value
        if isinstance(part, ast.Name) and part.id in MODULE_NAMES and names:
            yield tuple(names)
        elif isinstance(part, ast.Name) and len(names) > 1 and names[0] in MODULE_ATTRIBUTES:
            yield tuple(names[1:])  # self._library.X, loaded.trt.X


def known(api: dict[str, Any], names: tuple[str, ...]) -> bool:
    first, *rest = names
    if first in api["functions"] or first in api["constants"] or first in (*api["python_functions"], "__version__"):
        return True
    kind = api["classes"].get(first)
    for name in rest:
        if kind is None:
            return False
        if name in kind.get("enum", ()) or name in ("__members__", "__init__"):
            return True
        if name in kind.get("methods", ()) or name in kind.get("properties", ()) or name in kind.get("constants", ()):
            return True
        kind = kind.get("nested", {}).get(name)
    return kind is not None


@pytest.mark.parametrize("major", [10, 11])
def test_every_name_of_the_module_is_in_the_bindings(major: int) -> None:
    api = record(major)
    unknown = {f"{path.name}: {'.'.join(names)}" for path in SOURCES for names in used(path) if not known(api, names)}

    assert unknown == set()


def test_the_check_sees_our_names_and_would_find_removed_ones() -> None:
    names = {".".join(name) for path in SOURCES for name in used(path)}

    assert {"Builder", "OnnxParserFlag.NATIVE_INSTANCENORM", "ProfilingVerbosity.DETAILED"} <= names
    assert known(record(10), ("BuilderFlag", "FP16"))
    assert not known(record(11), ("BuilderFlag", "FP16"))
    assert not known(record(11), ("IInt8Calibrator",))


def test_the_records_name_their_source_and_version() -> None:
    for major, version in ((10, "10.16.1.11"), (11, "11.4.0.106")):
        assert record(major)["version"] == version
        assert f"tensorrt_cu13_bindings-{version}" in record(major)["source"]
