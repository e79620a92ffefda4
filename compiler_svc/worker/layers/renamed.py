# SPDX-License-Identifier: Apache-2.0
"""A session whose outputs go by the names of the tensors that they show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dovetail.engines import Session
from dovetail.tensor import Array


class Renamed:
    """Wraps a session; closing it closes the session.

    Several tensors may share an output, as where an engine removed what lay between them.
    """

    concurrent = False

    def __init__(self, session: Session, names: Mapping[str, str]) -> None:
        """`names` are tensor -> output of the session."""
        specs = {spec.name: spec for spec in session.outputs}
        self._session, self._names = session, names
        self.inputs = session.inputs
        self.outputs = tuple(replace(specs[output], name=tensor) for tensor, output in names.items())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Session.run`."""
        results = self._session.run(feeds)
        return {tensor: results[output] for tensor, output in self._names.items()}

    def close(self) -> None:
        """See `Session.close`."""
        self._session.close()
