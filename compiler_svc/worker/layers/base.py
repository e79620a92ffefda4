# SPDX-License-Identifier: Apache-2.0
"""What looks into an artifact: its intermediate tensors, and each of its quantised layers alone.

One file per engine says how; `tracing` and `report` are the same for all. A probe runs in the build's child, on a few
samples, and never changes the artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dovetail.contract import Contract
from dovetail.engines import Session, SessionOptions
from dovetail.tensor import Array

Feeds = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class ProbeOrder:
    """What a probe gets.

    Attributes:
        model: The source model, normalised ONNX.
        files: The artifact's files, by the name that the engine expects.
        contract: The artifact's contract.
        options: How to load it; one thread, so that equal builds give equal reports.
        feeds: A few inputs.
        scratch: Private directory; what is written there is the caller's to remove.
        expired: True once there is no time left; asked between runs.
    """

    model: Path
    files: Mapping[str, Path]
    contract: Contract
    options: SessionOptions
    feeds: Sequence[Feeds]
    scratch: Path
    expired: Callable[[], bool]


class ArtifactView(Protocol):
    """An opened artifact whose inner tensors can be read under the names that they have in the source model."""

    tensors: frozenset[str]
    """Names of tensors that can be exposed; a superset of those that the source model has too."""

    def quantised(self, tensor: str, known: frozenset[str]) -> bool:
        """True if the tensor is computed from the `known` ones by way of quantised values."""
        ...

    def expose(self, tensors: Sequence[str]) -> Session:
        """A session whose outputs are these tensors, under their names; the caller closes it.

        Raises:
            EngineError: The changed graph does not load.
        """
        ...


class LayerProbe(Protocol):
    """The surface of one `<engine>_layers.py`; importing it must not import the library."""

    ENGINE: str

    def open_view(self, order: ProbeOrder) -> ArtifactView:
        """Open the artifact.

        Raises:
            DovetailError: It cannot be read.
        """
        ...

    def alone(self, order: ProbeOrder, tensors: Mapping[str, str]) -> Mapping[str, float]:
        """Signal-to-noise ratio in dB of the model's worst float output with one layer alone quantised.

        Weights, scales and zero points are those of the artifact. Only the quantisation error counts: the arithmetic
        is exact, so that a kernel which saturates is not blamed on the layer.

        Args:
            order: The artifact and the inputs.
            tensors: Layer -> the tensor that stands for its result in the artifact, one of `ArtifactView.tensors`.

        Returns:
            A figure for each layer; one that the artifact does not quantise is at LIMIT_DB.

        Raises:
            UnsupportedError: The layers cannot be taken apart in this artifact, or the time is over.
        """
        ...
