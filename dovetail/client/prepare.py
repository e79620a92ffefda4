# SPDX-License-Identifier: Apache-2.0
"""Makes a push ready to be sent: samples in one file each, bundles unpacked, in a temporary folder that goes with it.

Files are read and the caller's iterables run in a thread, never on the event loop.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from dovetail.client.bundle import open_bundle
from dovetail.client.push import PushOrder
from dovetail.client.samples import Samples, sample_file


@asynccontextmanager
async def with_samples(
    order: PushOrder, calibration: Samples | None, validation: Samples | None
) -> AsyncIterator[PushOrder]:
    """The order with its samples, for as long as the block runs.

    Raises:
        InvalidInputError: As `sample_file`.
    """
    with tempfile.TemporaryDirectory(prefix="dovetail-push-") as scratch:
        yield replace(
            order,
            calibration=await _file(calibration, Path(scratch), "calibration"),
            validation=await _file(validation, Path(scratch), "validation"),
        )


@asynccontextmanager
async def opened_bundle(bundle: Path, name: str) -> AsyncIterator[PushOrder]:
    """The push that a bundle stands for, for as long as the block runs; raises as `open_bundle`."""
    with tempfile.TemporaryDirectory(prefix="dovetail-push-") as scratch:
        yield await asyncio.to_thread(open_bundle, bundle, Path(scratch), name=name)


async def _file(samples: Samples | None, scratch: Path, what: str) -> Path | None:
    if samples is None:
        return None
    return await asyncio.to_thread(sample_file, samples, scratch / f"{what}.npz", what=what)
