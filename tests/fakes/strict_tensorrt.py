# SPDX-License-Identifier: Apache-2.0
"""A module that has exactly the names and signatures of TensorRT's Python bindings, for tests of our calls.

It is made from what was recorded of the real bindings (`tests/contract/tensorrt_api_<major>.json`). A name that is not
in the record is an AttributeError, a call that no recorded signature takes is a TypeError, so a misspelt or removed
API (`BuilderFlag.FP16` on 11) fails a test as it would fail on the machine. It computes nothing: what a method
returns is said by the test, else it is an empty value of the recorded type.

    trt = strict_tensorrt(major=11, script={"Builder.build_serialized_network": plan, "ICudaEngine.num_layers": 3})
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    ...
    assert ("IBuilderConfig.set_flag", trt.BuilderFlag.TF32) in calls_of(trt)

A script's value is the result, or a function of (self, *arguments) that gives it; its keys are checked, too. Objects
that the bindings only hand out (`ICudaEngine`, ...) are made by `made(trt, "ICudaEngine")`.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

_RECORDS = Path(__file__).parents[1] / "contract"
_EMPTY: Mapping[str, Any] = {"bool": True, "int": 0, "float": 0.0, "str": "", "tuple": (), "list": [], "dict": {}}


def strict_tensorrt(*, major: int, script: Mapping[str, Any] | None = None) -> Any:
    """The module; `script` says what methods ("Class.method") return and what properties hold."""
    record = json.loads((_RECORDS / f"tensorrt_api_{major}.json").read_text())
    return _Bindings(record, dict(script or {})).module


def calls_of(trt: Any) -> list[tuple[Any, ...]]:
    """What was called, in order: (name, *arguments); a property that was set is ("Class.name =", value)."""
    return trt.__dict__["_bindings"].calls


def made(trt: Any, name: str, /, **properties: Any) -> Any:
    """An object of a class that Python code cannot construct, with these properties."""
    return trt.__dict__["_bindings"].make(name, properties)


def memory(trt: Any, content: bytes) -> Any:
    """An `IHostMemory` of this content."""
    return trt.IHostMemory.__new__(trt.IHostMemory, content)


@dataclass(frozen=True)
class _Signature:
    text: str
    names: tuple[str, ...]
    types: tuple[str, ...]
    required: frozenset[str]
    result: str

    def taken(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]] | None:
        """Types with their values, if the arguments' number and names fit."""
        if len(args) > len(self.names) or set(kwargs) - set(self.names[len(args) :]):
            return None
        given = dict(zip(self.names, args, strict=False)) | dict(kwargs)
        if not self.required <= set(given):
            return None
        return [(kind, given[name]) for name, kind in zip(self.names, self.types, strict=True) if name in given]


class _Bindings:
    def __init__(self, record: Mapping[str, Any], script: dict[str, Any]) -> None:
        self.record, self.script = record, script
        self.calls: list[tuple[Any, ...]] = []
        self.kinds: dict[str, type] = {}
        self.module = ModuleType("tensorrt")
        self.used = set(script)
        self._fill()
        if self.used:
            raise AttributeError(f"script names what TensorRT {record['version']} does not have: {sorted(self.used)}")

    def _fill(self) -> None:
        waiting = dict(self.record["classes"])
        while waiting:  # bases first
            for name in [name for name in waiting if not set(waiting[name].get("bases", ())) & set(waiting)]:
                setattr(self.module, name, self._class(name, waiting.pop(name)))
        for name, text in self.record["constants"].items():
            setattr(self.module, name, self._constant(text))
        for name, texts in self.record["functions"].items():
            setattr(self.module, name, self._method(name, texts or [f"{name}()"], bound=False))
        self.module.__dict__.update(
            {"__version__": self.record["version"], "volume": _volume, "nptype": self._nptype, "_bindings": self}
        )

    def _class(self, name: str, record: Mapping[str, Any]) -> type:
        if "enum" in record:
            kind: type = enum.Enum(name.rpartition(".")[2], record["enum"], type=_Member)  # type: ignore[assignment]
            kind.__qualname__ = name
            self.kinds[name] = kind
            return kind
        bases = tuple(self.kinds[base] for base in record["bases"][:1]) or self._root(name)
        kind = type(name, bases, {"_strict": (self, name), "__init__": self._constructor(name, record["init"])})
        self.kinds[name] = kind
        for inner, content in record["nested"].items():
            if not hasattr(kind, inner):
                setattr(kind, inner, self._class(f"{name}.{inner}", content))
        for method, texts in record["methods"].items():
            setattr(kind, method, self._method(f"{name}.{method}", texts or [f"{method}(self)"]))
        for attribute, content in record["properties"].items():
            setattr(kind, attribute, self._property(f"{name}.{attribute}", content))
        for constant, text in record["constants"].items():
            setattr(kind, constant, self._constant(text))
        if name == "IHostMemory":
            setattr(kind, "nbytes", property(len))  # noqa: B010
        return kind

    def _root(self, name: str) -> tuple[type, ...]:
        if name == "IHostMemory":  # the buffer protocol cannot be had otherwise before Python 3.12
            return (_Strict, bytes)
        return (_Strict, tuple) if name == "Dims" else (_Strict,)

    def _constant(self, text: str) -> Any:
        kind, _, member = text.rpartition(".")
        return getattr(self.kinds[kind], member)

    def _constructor(self, name: str, texts: list[str]) -> Callable[..., None]:
        signatures = [_signature(text) for text in texts]

        def construct(this: Any, *args: Any, **kwargs: Any) -> None:
            if not signatures:
                raise TypeError(f"{name}: No constructor defined!")
            self._check(name, signatures, (this, *args), kwargs)
            this.__dict__["_initialised"] = True
            self.calls.append((name, *args, *kwargs.values()))

        return construct

    def _method(self, name: str, texts: list[str], *, bound: bool = True) -> Callable[..., Any]:
        signatures = [_signature(text) for text in texts]
        self.used.discard(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            taken = self._check(name, signatures, args, kwargs)
            self.calls.append((name, *(args[1:] if bound else args), *kwargs.values()))
            result = self.script.get(name, _Missing)
            if result is _Missing:
                return self._empty(taken.result)
            result = result(*args, **kwargs) if callable(result) and not isinstance(result, type) else result
            return memory(self.module, result) if taken.result == "IHostMemory" and _plain(result) else result

        return call

    def _property(self, name: str, record: Mapping[str, Any]) -> property:
        kind, attribute = _plain_type(record["type"]), name.rpartition(".")[2]
        self.used.discard(name)

        def read(this: Any) -> Any:
            if attribute in this.__dict__.get("_set", {}):
                return this.__dict__["_set"][attribute]
            result = self.script.get(name, _Missing)
            if result is _Missing:
                return self._empty(kind)
            return result(this) if callable(result) and not isinstance(result, type) else result

        def write(this: Any, value: Any) -> None:
            if not self._fits(kind, value):
                raise TypeError(f"{name} takes {kind}, got {value!r}")
            this.__dict__.setdefault("_set", {})[attribute] = value
            self.calls.append((f"{name} =", value))

        return property(read, write if record["writable"] else None)

    def _check(
        self, name: str, signatures: list[_Signature], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> _Signature:
        for signature in signatures:
            taken = signature.taken(args, kwargs)
            if taken is not None and all(self._fits(kind, value) for kind, value in taken[1:]):
                return signature
        known = "; ".join(signature.text for signature in signatures)
        raise TypeError(f"{name}(): incompatible arguments {args[1:]!r} {dict(kwargs)!r}; supported: {known}")

    def _fits(self, kind: str, value: Any) -> bool:
        if kind == "Dims":
            return isinstance(value, self.kinds["Dims"] | tuple | list) and all(isinstance(item, int) for item in value)
        if kind in self.kinds:
            known = self.kinds[kind]
            if issubclass(known, enum.Enum):
                return isinstance(value, known)
            if value is not None and not isinstance(value, known):
                return False
            return value is None or "_initialised" in value.__dict__
        checks: Mapping[str, Callable[[Any], bool]] = {
            "str": lambda item: item is None or isinstance(item, str),
            "bool": lambda item: isinstance(item, bool),
            "int": lambda item: hasattr(item, "__index__") and not isinstance(item, bool),
            "typing.SupportsInt": lambda item: hasattr(item, "__index__") and not isinstance(item, bool),
            "float": lambda item: hasattr(item, "__float__"),
            "typing.SupportsFloat": lambda item: hasattr(item, "__float__"),
            "typing_extensions.Buffer": _is_buffer,
        }
        return checks.get(kind, lambda item: True)(value)

    def _empty(self, kind: str) -> Any:
        if kind in self.kinds:
            known = self.kinds[kind]
            return next(iter(known)) if issubclass(known, enum.Enum) else self.make(kind, {})
        value = _EMPTY.get(kind.partition("[")[0])
        return type(value)(value) if value is not None else None

    def make(self, name: str, properties: Mapping[str, Any]) -> Any:
        kind = self.kinds[name]
        found = kind.__new__(kind)
        found.__dict__["_initialised"] = True
        for attribute in properties:
            if not isinstance(getattr(kind, attribute), property):
                raise AttributeError(f"{name}.{attribute} is no property")
        found.__dict__["_set"] = dict(properties)
        return found

    def _nptype(self, kind: Any) -> Any:
        names = {"FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64,
                 "BOOL": np.bool_, "UINT8": np.uint8}  # fmt: skip
        if kind.name not in names:
            raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
        return names[kind.name]


class _Missing:
    """No value."""


class _Strict:
    """Base of all classes: attributes are the recorded ones; a subclass that a caller writes may have more."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not isinstance(getattr(type(self), name, None), property) and "_strict" in vars(type(self)):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        object.__setattr__(self, name, value)


class _Member:
    """Of an enumeration: as pybind11's, it turns into an int but is none."""

    value: int

    def __int__(self) -> int:
        return self.value

    def __index__(self) -> int:
        return self.value

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.value))


def _signature(text: str) -> _Signature:
    clean = re.sub(r"\w+::", "", text)
    head, _, result = clean.partition(" -> ")
    _, _, arguments = head.rpartition(")")[0].partition("(")
    parts = [part.partition(" = ") for part in re.split(r", (?=\w+:)", arguments) if part]
    typed = [part.partition(": ") for part, _, _ in parts]
    return _Signature(
        text,
        tuple(name for name, _, _ in typed),
        tuple(kind for _, _, kind in typed),
        frozenset(name for (name, _, _), (_, has_default, _) in zip(typed, parts, strict=True) if not has_default),
        _plain_type(result or "None"),
    )


def _plain_type(text: str) -> str:
    plain = re.sub(r"\w+::", "", text)
    return "ParserError" if plain == "IParserError" else plain


def _plain(value: Any) -> bool:
    return type(value) in (bytes, bytearray)


def _is_buffer(value: Any) -> bool:
    try:
        memoryview(value)
    except TypeError:
        return False
    return True


def _volume(iterable: Any) -> int:
    found = 1
    for item in iterable:
        found *= item
    return found
