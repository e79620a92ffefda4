# SPDX-License-Identifier: Apache-2.0
"""Says where in the user's code something comes from: "net.py:12 in forward of Net.block, `x.sum().item()`".

File names without folders, since the text may leave the machine. Knows torch's records by their attributes only.
"""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from types import FrameType
from typing import Any

from dovetail.errors import brief

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<where>\S+)(?:\n|, code: )?\s*(?P<code>[^\n]*)')
_LIBRARIES = ("/site-packages/", "/dist-packages/", "/dovetail/client/", "/dovetail/program/")


def origin_of(node: Any) -> str:
    """Where a graph's node was called; "" if the program does not say (it is dropped when one is saved for others)."""
    frames = list(_FRAME.finditer(str(node.meta.get("stack_trace") or "")))
    own = [item for item in frames if not is_library(item["file"])] or frames
    if not own:
        return ""
    frame = own[-1]
    return _text(frame["file"], int(frame["line"]), frame["where"], _module_of(node.meta), frame["code"])


def origin_of_error(error: BaseException, module: Any) -> str:
    """The innermost line of the user's code that an exception passed through; "" if there is none.

    Args:
        error: It, or what it was raised from.
        module: The torch.nn.Module whose parts are named.
    """
    seen: BaseException | None = error
    while seen is not None:
        place = _last(traceback.walk_tb(seen.__traceback__), module, innermost_first=False)
        if place:
            return place
        seen = seen.__cause__ or seen.__context__
    return ""


def is_library(file: str) -> bool:
    """True for a file of an installed package or of ours, which is not where the user looks."""
    return any(part in file.replace("\\", "/") for part in _LIBRARIES) or file.startswith("<")


def origin_of_call(module: Any) -> str:
    """The innermost line of the user's code that is running now, above the caller; "" if there is none."""
    return _last(traceback.walk_stack(None), module, innermost_first=True)


def _last(frames: Iterable[tuple[FrameType, int]], module: Any, *, innermost_first: bool) -> str:
    names = {id(part): name for name, part in module.named_modules()}
    found = ""
    for frame, line in frames:
        code = frame.f_code
        part = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None  # self, however it is called
        if not is_library(code.co_filename) and id(part) in names:
            path = ".".join([type(module).__name__, *([names[id(part)]] if names[id(part)] else [])])
            text = linecache.getline(code.co_filename, line)
            found = _text(code.co_filename, line, code.co_name, path, text)
            if innermost_first:
                break
    return found


def _module_of(meta: Mapping[str, Any]) -> str:
    stack = list((meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.removeprefix("L['self'].").removeprefix("L['self']")


def _text(file: str, line: int, where: str, module: str, code: str) -> str:
    of = f" of {module}" if module else ""
    quoted = f", `{brief(code, 80)}`" if code.strip() else ""
    return f"{PurePath(file).name}:{line} in {where}{of}{quoted}"
