# SPDX-License-Identifier: Apache-2.0
"""A TensorRT plan with one byte of its header changed: the rules must refuse it, and the engine must not load it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dovetail.contract import Contract
from dovetail.engines import SessionOptions, create_engine
from dovetail.errors import DovetailError
from dovetail.fingerprint import Fingerprint
from dovetail.rules import Verdict, rules_for
from dovetail.rules.tensorrt_plan import HEADER_BYTES, parse_plan_header
from dovetail.selftest.report import Check

_SUFFIX = ".plan"
_VERSION_BYTE = 24  # of the header: the major number, see parse_plan_header


def foreign_plan(
    files: Mapping[str, Path], contract: Contract, options: SessionOptions, machine: Fingerprint
) -> list[Check]:
    """Two checks for an artifact with a plan, none for any other. Blocks.

    Args:
        files: Name in the manifest -> file.
        contract: The artifact's.
        options: How it is loaded here.
        machine: This one.
    """
    plan = next((path for name, path in files.items() if name.endswith(_SUFFIX)), None)
    if plan is None:
        return []
    with tempfile.TemporaryDirectory(prefix="dovetail-plan-") as folder:
        changed = Path(folder, plan.name)
        data = bytearray(plan.read_bytes())
        data[_VERSION_BYTE] ^= 0x1F
        changed.write_bytes(data)
        others = {name: changed if path == plan else path for name, path in files.items()}
        header = str(parse_plan_header(bytes(data[:HEADER_BYTES])))
        return [
            _refused_by_rules(replace(contract, details={**contract.details, "plan_version": header}), machine),
            _refused_by_engine(contract.engine, others, options),
        ]


def _refused_by_rules(contract: Contract, machine: Fingerprint) -> Check:
    name = "refused: a plan with a changed version byte"
    rules = rules_for(contract.engine)
    found = [] if rules is None else [reason for rule in rules.RULES if (reason := rule(contract, machine)) is not None]
    refusing = next((reason for reason in found if reason.verdict >= Verdict.RECOMPILE), None)
    return Check(name, refusing is not None, str(refusing or "no rule refused it"))


def _refused_by_engine(engine: str, files: Mapping[str, Path], options: SessionOptions) -> Check:
    name = "the engine does not load a plan with a changed version byte"
    try:
        create_engine(engine).load(files, options).close()
    except DovetailError as exc:
        return Check(name, True, str(exc))
    return Check(name, False, "it was loaded")
