# SPDX-License-Identifier: Apache-2.0
"""The layer report of an artifact: how far each tensor is from the reference, and which layers stayed in float.

A pure value with its JSON form; the file `layers.json` of an artifact and the `layers_json` of a failed build hold it.
How the figures are measured is the builder's business (`compiler_svc.worker.layers`), how they are shown the command
line's. There are no times in it, so that equal builds give equal files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from dovetail.digest import canonical_json, read_json
from dovetail.errors import InvalidInputError

SCHEMA = 1
FILE_NAME = "layers.json"
MAX_REPORT_BYTES = 256 << 10
"""Larger reports are neither written nor read; a tensor takes some 200 bytes."""

JUMP_DB = 10.0
"""A tensor jumps if its signal-to-noise ratio is more than this under that of its worst input."""

LIMIT_DB = 200.0
"""Reported for identical tensors (and, negative, for values that are not finite): JSON has no infinity."""

_BITS = {"int8": 7, "fp8": 6, "int4": 4}
"""int8: where the CPU needs a reduced range, weights have no more than 7. fp8 (E4M3) errs relative to each value,
evenly up to 2^-4 of it: 29 dB, what 6 bits give in the formula below."""
_PEAK_TO_RMS_DB = 12.0  # a Gaussian tensor cut at four standard deviations


@dataclass(frozen=True, slots=True)
class TensorError:
    """One float tensor of the model.

    Attributes:
        tensor: Its name in the source model.
        node: The node that stands for it there: the heavy one of a fused group, else the one that writes it.
        op_type: Operator of that node.
        snr_db: 10 log10(signal power / error power) over all samples, within +-LIMIT_DB.
        cosine: Cosine similarity over all samples.
        max_error: Largest absolute error as a fraction of the reference's range.
        quantised: True if the artifact computes it from quantised values.
        weight_share: Share of the model's parameters that its node holds, 0 to 1.
        inputs: Tensors of this report, nearest first, that it is computed from.
        why: Why it is computed in float; "" if it is quantised.
    """

    tensor: str
    node: str
    op_type: str
    snr_db: float
    cosine: float
    max_error: float
    quantised: bool
    weight_share: float = 0.0
    inputs: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer that the recipe could quantise.

    Attributes:
        node: Its name, as `Recipe.excluded_nodes` takes it.
        snr_db: Signal-to-noise ratio that the ranking gave it, see `LayerReport.ranked_by`; None if not ranked.
        kept: Why it stayed in float; "" if it is quantised.
    """

    node: str
    snr_db: float | None = None
    kept: str = ""


@dataclass(frozen=True, slots=True)
class Jump:
    """Where the error arises: `tensor` is at `snr_db`, its worst input was at `before_db`."""

    tensor: str
    node: str
    before_db: float
    snr_db: float


@dataclass(frozen=True, slots=True)
class LayerReport:
    """Where an artifact's error comes from.

    Attributes:
        recipe: Name of the recipe.
        engine: Engine that ran it.
        precision: Precision of the recipe.
        samples: Samples behind the figures.
        tensors: In graph order.
        layers: Layers that could be quantised: ranked ones first, most sensitive first; then in graph order.
        ranked_by: "alone": the model's outputs with that layer alone quantised; "tensor": its own tensor's error in the
            artifact; "" if nothing had to be ranked.
        tries: What was tried to pass the gate, for people.
        notes: What was left out, for people.
    """

    recipe: str
    engine: str
    precision: str
    samples: int = 0
    tensors: tuple[TensorError, ...] = ()
    layers: tuple[Layer, ...] = ()
    ranked_by: str = ""
    tries: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> tuple[Layer, ...]:
        """Layers that stayed in float."""
        return tuple(layer for layer in self.layers if layer.kept)

    def first_jump(self) -> Jump | None:
        """The first tensor that is more than JUMP_DB worse than its worst input; None if there is none.

        Inputs that are better than quantisation can be (`expected_db`) count as that good: else the first quantised
        layer of every artifact would be the answer.
        """
        ceiling = expected_db(self.precision)
        known: dict[str, float] = {}
        for row in self.tensors:
            before = min([ceiling, *(known[name] for name in row.inputs if name in known)])
            if row.snr_db < before - JUMP_DB:
                return Jump(row.tensor, row.node, before, row.snr_db)
            known[row.tensor] = row.snr_db
        return None

    def to_json(self) -> dict[str, Any]:
        """JSON form; `LayerReport.from_json(r.to_json()) == r`."""
        return {
            "schema": SCHEMA,
            "recipe": self.recipe,
            "engine": self.engine,
            "precision": self.precision,
            "samples": self.samples,
            "tensors": [{**asdict(row), "inputs": list(row.inputs)} for row in self.tensors],
            "layers": [asdict(layer) for layer in self.layers],
            "ranked_by": self.ranked_by,
            "tries": list(self.tries),
            "notes": list(self.notes),
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> LayerReport:
        """Read the JSON form.

        Raises:
            InvalidInputError: It is of another schema, or a field is missing or unknown.
        """
        try:
            values = dict(document)
            if values.pop("schema") != SCHEMA:
                raise InvalidInputError(f"layer report is not of schema {SCHEMA}, which this version reads")
            values["tensors"] = tuple(
                TensorError(**{**row, "inputs": tuple(str(name) for name in row["inputs"])})
                for row in values["tensors"]
            )
            values["layers"] = tuple(Layer(**layer) for layer in values["layers"])
            for name in ("tries", "notes"):
                values[name] = tuple(str(line) for line in values[name])
            return LayerReport(**values)
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise InvalidInputError(f"layer report is not readable: {exc!r}") from exc

    def fitted(self) -> LayerReport:
        """The report within MAX_REPORT_BYTES: the tensors with the least error are left out first, and it says so."""
        rows, report = self.tensors, self
        while (size := len(canonical_json(report.to_json()))) > MAX_REPORT_BYTES:
            if not rows:
                note = f"the report of {len(self.layers)} layers was too large to keep"
                return LayerReport(self.recipe, self.engine, self.precision, notes=(note,))
            rows = _loudest(rows, len(rows) * MAX_REPORT_BYTES // (size + MAX_REPORT_BYTES // 16))
            note = f"{len(self.tensors) - len(rows)} tensors with the least error are left out for size"
            report = replace(self, tensors=rows, notes=(*self.notes, note))
        return report

    def to_bytes(self) -> bytes:
        """Canonical document of the fitted report: at most MAX_REPORT_BYTES."""
        return canonical_json(self.fitted().to_json())

    @staticmethod
    def from_bytes(data: bytes) -> LayerReport:
        """Read a document.

        Raises:
            InvalidInputError: It is too large, not JSON, or not a layer report.
        """
        if len(data) > MAX_REPORT_BYTES:
            raise InvalidInputError(f"layer report has {len(data)} bytes, at most {MAX_REPORT_BYTES} are read")
        document = read_json(data, "layer report")
        if not isinstance(document, dict):
            raise InvalidInputError("layer report is not a JSON object")
        return LayerReport.from_json(document)


def expected_db(precision: str) -> float:
    """Signal-to-noise ratio that a healthy tensor of that precision has at best; LIMIT_DB if it is not quantised.

    Source: uniform quantisation noise, 6.02 bits + 4.77 dB - 20 log10(peak / rms) (Widrow and Kollár, "Quantization
    Noise", 2008), for a peak of four standard deviations: 35 dB for 7 bits, 17 dB for 4.
    """
    bits = _BITS.get(precision)
    return LIMIT_DB if bits is None else 6.02 * bits + 4.77 - _PEAK_TO_RMS_DB


def _loudest(rows: tuple[TensorError, ...], count: int) -> tuple[TensorError, ...]:
    ranked = sorted(range(len(rows)), key=lambda index: (rows[index].snr_db, index))
    return tuple(rows[index] for index in sorted(ranked[:count]))
