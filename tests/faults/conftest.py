# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the fault suite."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.faults.mesh import FaultMesh, fault_mesh
from tests.faults.processes import Zygote, zygote, zygote_process


@pytest.fixture(scope="session")
def zygote_socket() -> Iterator[Path]:
    """One process for all tests that has imported what the mesh needs."""
    with zygote_process() as path:
        yield path


@pytest.fixture
async def starter(zygote_socket: Path) -> AsyncIterator[Zygote]:
    """Starts processes; all are gone after the test."""
    async with zygote(zygote_socket) as running:
        yield running


@pytest.fixture
async def mesh(tmp_path: Path, starter: Zygote) -> AsyncIterator[FaultMesh]:
    """A mesh with one service and two workers."""
    async with fault_mesh(tmp_path / "mesh", starter) as running:
        yield running
