# SPDX-License-Identifier: Apache-2.0
"""Parses a small YAML file safely: plain values only, no key twice; and writes one.

The one place that knows the YAML library.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from dovetail.errors import InvalidInputError, OverLimitError, UnsupportedError, brief

MAX_YAML_BYTES = 64 << 10
"""Refuse larger files; a real one is a few hundred bytes."""

MAX_DEPTH = 16
"""Refuse deeper nesting, on which the parser would spend minutes; a real file has 4 levels."""


def parse_yaml(data: bytes, name: str) -> object:
    """The document as plain Python values.

    Values may be shared by aliases, also inside themselves: never walk or print one without a check of its type.

    Args:
        data: The file's bytes.
        name: For messages.

    Raises:
        InvalidInputError: Not YAML, more than one document, or a key is there twice.
        OverLimitError: Larger than MAX_YAML_BYTES.
        UnsupportedError: PyYAML is not installed.
    """
    if len(data) > MAX_YAML_BYTES:
        raise OverLimitError(f"{name} has more than {MAX_YAML_BYTES} bytes")
    try:
        import yaml
    except ImportError as exc:
        raise UnsupportedError(f"reading {name} needs PyYAML: pip install 'dovetail[cli]'") from exc

    class UniqueKeys(yaml.SafeLoader):
        """PyYAML keeps the last of two equal keys without a word."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for index, key in enumerate(keys):
                if key in keys[:index]:
                    raise InvalidInputError(f"{name}: key {str(key)[:80]!r} is there twice")
            mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
            return mapping

    try:
        depth = 0
        for event in yaml.parse(data, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise InvalidInputError(f"{name} nests its values more than {MAX_DEPTH} deep")
        return yaml.load(data, UniqueKeys)  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as exc:
        raise InvalidInputError(f"{name} is not readable as YAML: {brief(str(exc), 300)}") from exc


def write_yaml(document: object, name: str) -> bytes:
    """Plain values as YAML, keys in their order; `parse_yaml(write_yaml(x)) == x`.

    Raises:
        UnsupportedError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as exc:
        raise UnsupportedError(f"writing {name} needs PyYAML: pip install 'dovetail[cli]'") from exc
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    return text.encode()
