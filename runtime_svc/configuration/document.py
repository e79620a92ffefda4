# SPDX-License-Identifier: Apache-2.0
"""From the text of a model configuration to its message: JSON in the form of Triton's ModelConfig, strictly.

What lives here is the form: size, JSON, field names, types. A field that Triton has and that has no effect here is
passed over while it is empty, because Triton's own dumps name every field, and refused with its name when it asks for
something. What the fields mean is read by `reading`.

Source: protobuf, JSON mapping; Triton Inference Server, model_config.proto.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from google.protobuf import json_format

from dovetail.digest import canonical_json
from dovetail.errors import InvalidInputError, OverLimitError, brief
from dovetail.pb import oip

MAX_CONFIG_BYTES = 1 << 20
"""A generous configuration, with a thousand tensors, has a tenth of that."""

_NO_EFFECT: Mapping[str, frozenset[str]] = {
    "": frozenset(
        (
            "cc_model_filenames", "metric_tags", "optimization", "model_warmup", "model_operations",
            "batch_output", "model_repository_agents", "runtime", "model_metrics",
        )
    ),
    "input": frozenset(("reshape", "is_non_linear_format_io")),
    "output": frozenset(("reshape", "is_non_linear_format_io", "label_filename")),
    "instance_group": frozenset(("rate_limiter", "secondary_devices", "profile", "passive", "host_policy")),
    "sequence_batching.state": frozenset(("use_same_buffer_for_input_output", "use_growable_memory")),
    "ensemble_scheduling.step": frozenset(("model_namespace",)),
}  # fmt: skip
"""Where in the document -> fields of Triton's that do nothing here."""

_EMPTY: tuple[object, ...] = (None, "", 0, False, [], {})


def read_document(text: str | bytes, what: str) -> tuple[oip.ModelConfig, Mapping[str, object]]:
    """The message in a configuration's text, and the JSON object it was read from, under Triton's names of fields.

    Args:
        text: JSON.
        what: What it is, for messages.

    Raises:
        OverLimitError: It is too large.
        InvalidInputError: It is not JSON, not an object, names a field twice, or has a field that nobody knows, that
            has no effect here, or whose value is of another type.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > MAX_CONFIG_BYTES:
        raise OverLimitError(f"{what} has {len(data)} bytes; the limit is {MAX_CONFIG_BYTES}")
    document = _object(data, what)
    _drop_without_effect(document, what)
    message = oip.ModelConfig()
    try:
        json_format.ParseDict(document, message)
    except (json_format.ParseError, TypeError, ValueError, AttributeError, RecursionError) as exc:
        raise InvalidInputError(f"{what} cannot be read: {brief(str(exc))}") from exc
    return message, document


def _object(data: bytes, what: str) -> dict[str, object]:
    try:
        value = json.loads(data, object_pairs_hook=_unique)
        canonical_json(value)  # Python's own reader also takes what no JSON is, such as infinities
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError(f"{what} is not JSON: {brief(str(exc), 200)}") from exc
    if not isinstance(value, dict):
        raise InvalidInputError(f'{what} must be a JSON object, such as {{"max_batch_size": 8}}')
    return value


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the field {name[:80]!r} is there twice")
        found[name] = value
    return found


def _drop_without_effect(document: dict[str, object], what: str) -> None:
    for place, names in _NO_EFFECT.items():
        for shown, holder in _holders(document, place.split(".") if place else []):
            for field in list(holder):
                if _snake(field) not in names:
                    continue
                if holder[field] not in _EMPTY:
                    raise InvalidInputError(
                        f"{what}: '{shown}{field}' has no effect here, so it is refused; take it out"
                    )
                del holder[field]


def _holders(value: object, path: Sequence[str], shown: str = "") -> Iterator[tuple[str, dict[str, object]]]:
    """Every object at a path, with how to name it; lists on the way are gone through."""
    if isinstance(value, list):
        for index, element in enumerate(value):
            yield from _holders(element, path, f"{shown[:-1]}[{index}].")
    elif isinstance(value, dict):
        if not path:
            yield shown, value
            return
        for field, inner in value.items():
            if _snake(field) == path[0]:
                yield from _holders(inner, path[1:], f"{shown}{field}.")


def _snake(name: str) -> str:
    """`maxBatchSize` as `max_batch_size`: JSON may have either."""
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name)
