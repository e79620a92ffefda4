# SPDX-License-Identifier: Apache-2.0
"""Whether a policy fits a model, asked when the model is pushed: a task that cannot be judged is refused then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from dovetail.accuracy import AccuracyPolicy
from dovetail.errors import InvalidInputError
from dovetail.gate.detection import LABEL_ROW, ROW
from dovetail.gate.thresholds import check_tolerances
from dovetail.tensor import Array, TensorSpec

_FLOATS = ("FP16", "FP32", "FP64")

_FORMS: Mapping[str, str] = MappingProxyType(
    {
        "regression": "numbers, one for each number that the output gives",
        "embedding": "numbers, one for each pair of consecutive samples",
        "detection": "float rows (samples, objects, 5) of class, x1, y1, x2, y2",
    }
)
"""Task -> its labels; the others have one integer for each sample."""


def check_policy(policy: AccuracyPolicy, outputs: Sequence[TensorSpec]) -> None:
    """Make sure that the policy can be judged on these outputs.

    Raises:
        InvalidInputError: A tolerance is not possible, there is no such output, or the task does not fit it.
    """
    check_tolerances(policy)
    named = {spec.name: spec for spec in outputs}
    if policy.output and policy.output not in named:
        raise InvalidInputError(
            f"accuracy policy: the model has no output {policy.output[:80]!r}; it has {', '.join(named)}"
        )
    spec = named[policy.output] if policy.output else outputs[0]
    where = f"accuracy policy: output {spec.name!r} is {spec.datatype} {list(spec.shape)}, and task {policy.task}"
    if policy.task in _FORMS and spec.datatype not in _FLOATS:
        raise InvalidInputError(f"{where} needs a floating-point output; name another one or use task generic")
    if policy.task == "embedding" and len(spec.shape) < 2:
        raise InvalidInputError(f"{where} needs one vector for each sample: (samples, dimensions)")
    if policy.task == "detection" and (len(spec.shape) not in (2, 3) or spec.shape[-1] not in (-1, ROW)):
        raise InvalidInputError(
            f"{where} understands one layout, (samples, detections, {ROW}) with x1, y1, x2, y2, score, class in each"
            " row; export the model with its non-maximum suppression, or use task generic"
        )


def check_labels(labels: Array, task: str, samples: int) -> None:
    """Make sure that labels have the form that a task wants.

    Args:
        labels: As read from the validation file.
        task: As in AccuracyPolicy; "" and "generic" are held to what classification wants.
        samples: Samples in the validation file.

    Raises:
        InvalidInputError: They have another dtype or shape.
    """
    kinds, fits = _label_form(labels, task, samples)
    if labels.dtype.kind not in kinds or not fits:
        wanted = _FORMS.get(task, "one integer for each sample")
        raise InvalidInputError(
            f"the label array of the validation file has dtype {labels.dtype} and shape {list(labels.shape)} for"
            f" {samples} samples; task {task or 'classification'} wants {wanted}"
        )


def _label_form(labels: Array, task: str, samples: int) -> tuple[str, bool]:
    """Kinds of dtype that are allowed, and whether the shape is."""
    first = len(labels) if labels.ndim else -1
    if task == "regression":
        return "iuf", first == samples
    if task == "embedding":
        return "iuf", samples % 2 == 0 and first == labels.size and labels.size in (samples // 2, samples)
    if task == "detection":
        return "f", first == samples and labels.ndim == 3 and labels.shape[2] == LABEL_ROW
    return "iu", first == labels.size == samples
