# SPDX-License-Identifier: Apache-2.0
"""Runs a freshly built artifact on the gate's inputs, so that it can be judged: here, or on the kind of CPU it is for.

What the outputs mean is `judging`'s business. A trial only runs: all samples one at a time, the question whether rows
may share a batch, and the replay of the goldens, as a device will do it.
"""

from __future__ import annotations

from compiler_svc.worker.build_spec import BuildSpec
from compiler_svc.worker.emulation.catalogue import EXACT_INT8
from compiler_svc.worker.emulation.ground import EmulatedGround, ExactInt8Ground
from compiler_svc.worker.native_ground import NativeGround, Trial, TrialGround, options_of

__all__ = ["EmulatedGround", "ExactInt8Ground", "NativeGround", "Trial", "TrialGround", "ground_for", "options_of"]


def ground_for(spec: BuildSpec) -> TrialGround:
    """Where the order wants its gate to run.

    Raises:
        UnsupportedError: It names an emulation that this version does not know.
    """
    if spec.emulation is None:
        return NativeGround(spec)
    if spec.emulation.name.startswith(EXACT_INT8):
        return ExactInt8Ground(spec)
    return EmulatedGround(spec, spec.emulation)
