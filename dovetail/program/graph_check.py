# SPDX-License-Identifier: Apache-2.0
"""Checks the JSON form of a program's graph for what torch would turn into code while it reads: a second line of
defence.

Four kinds of text in it are evaluated or looked up by torch 2.13: expressions of sizes (by sympy, which evaluates them
as Python), targets of nodes (by name in torch, operator and math), guards (compiled as Python; they are dropped), and
types in the description of arguments (imported by name). What torch.export.save writes itself fits narrow patterns;
anything else is refused. That this list is complete is not claimed: a confined child is the first line.

Source: PyTorch 2.13.0, torch/_export/serde/serialize.py (_parse_sym_expr, deserialize_operator),
    torch/export/_unlift.py (guards), torch/utils/_pytree.py (_defaultdict_deserialize, enum_object_hook).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from dovetail.errors import InvalidInputError

GUARDS = "guards_code"
"""Key of the guards, which are Python."""

_SIZE = re.compile(r"(?:[A-Za-z_]\w*|\d+(?:\.\d+)?(?:e[+-]?\d+)?|'[\w.+-]*'|[-+*/%(),<>=!&|~ ])*", re.ASCII)
_CALLED = re.compile(r"(\w+)\s*\(", re.ASCII)
_FUNCTIONS = frozenset(
    {
        *("Symbol", "Integer", "Float", "Rational", "Half", "Add", "Mul", "Pow", "Abs", "Max", "Min", "Mod"),
        *("And", "Or", "Not", "ITE", "Piecewise", "ExprCondPair", "floor", "ceiling"),
        *("Equality", "Unequality", "LessThan", "GreaterThan", "StrictLessThan", "StrictGreaterThan"),
        *("Eq", "Ne", "Le", "Lt", "Ge", "Gt"),
        *("FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv"),
        *("LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt"),
        *("IsNonOverlappingAndDenseIndicator", "RoundToInt", "RoundDecimal", "ToFloat", "Identity"),
    }
)
_DUNDERS = frozenset(
    f"__{name}__" for name in ("and", "or", "xor", "lshift", "rshift", "iand", "ior", "ixor", "ilshift", "irshift")
)  # of aten's own operators
_TARGET = re.compile(
    r"torch\.ops\.\w+\.\w+(?:\.\w+)?"
    r"|_operator\.(?:getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|xor|invert|inv"
    r"|lshift|rshift|is_|is_not|contains|index)"
    r"|math\.\w+"
    r"|torch\._?sym_\w+"
    r"|torch\._check(?:_is_size)?",
    re.ASCII,
)
_IMPORTED = ("default_factory_module", '"__enum__"')
_MAX_EXPRESSION = 4096


def check_graph(document: Any) -> None:
    """Walk over the document.

    Raises:
        InvalidInputError: It holds a text that torch.export.save would not have written; the text says which.
    """
    for key, text in _texts(document):
        if key == "expr_str" and not _is_size(text):
            raise InvalidInputError(
                f"program: size {text[:80]!r} is no expression of sizes; torch would evaluate it as Python, so the"
                " program is refused"
            )
        if key == "target" and not _is_operator(text):
            raise InvalidInputError(
                f"program: a node calls {text[:80]!r}, which is no operator of torch; export a module of operators only"
            )
        if any(word in text for word in _IMPORTED):
            raise InvalidInputError(
                "program: its arguments hold a defaultdict or an enum, which torch imports by name; use plain tuples,"
                " lists and dicts"
            )


def _is_size(text: str) -> bool:
    """True for numbers, names, operators, and calls of the few functions that torch knows for sizes."""
    plain = len(text) <= _MAX_EXPRESSION and "__" not in text and _SIZE.fullmatch(text)
    return bool(plain) and _FUNCTIONS.issuperset(_CALLED.findall(text))


def _is_operator(text: str) -> bool:
    """True for the name of an operator, none of whose parts is a method that every object has."""
    hidden = {part for part in text.split(".") if part.startswith("__")}
    return bool(_TARGET.fullmatch(text)) and hidden <= _DUNDERS


def _texts(document: Any) -> Iterator[tuple[str, str]]:
    """Every text with its key; keys of signatures' targets (names of weights) are told apart by what is beside them."""
    waiting: list[tuple[str, Any]] = [("", document)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, list):
            waiting.extend((key, item) for item in value)
        elif isinstance(value, dict):
            is_node = "target" in value and "inputs" in value
            waiting.extend(
                ("" if name == "target" and not is_node else str(name), item) for name, item in value.items()
            )
            waiting.extend(("", name) for name in value)
