# SPDX-License-Identifier: Apache-2.0
"""Weight compression with NNCF: int8 or int4 weights, unpacked by the kernels that use them; activations stay float.

What lives here: one call into NNCF, led by the recipe's options (their names are in
`dovetail.rules.openvino_recipes`). It needs no samples; those that it can use (AWQ, scale estimation) only choose
better weights.
"""

from __future__ import annotations

from typing import Any

from compiler_svc.backends.base import BuildInput
from compiler_svc.backends.openvino_calibration import calibration_feeds, quiet_nncf
from compiler_svc.backends.openvino_nodes import operations_of
from dovetail.errors import UnsupportedError
from dovetail.recipe import Recipe

_MODES = ("int8_asym", "int8_sym", "int4_asym", "int4_sym")
_SUBSET = 128  # NNCF's default


def compress(order: BuildInput, model: Any) -> tuple[Any, dict[str, str]]:
    """Compress the weights of a converted model.

    Args:
        order: With calibration samples if the recipe asks for AWQ or scale estimation.
        model: Converted from the order's model and not changed since.

    Returns:
        The compressed model, and labels: "uncalibrated" or the samples used, which excluded nodes were folded away.

    Raises:
        UnsupportedError: An option has a value that is not known, or an excluded node does not exist.
        PreconditionError: Samples are needed and there are none.
    """
    options, recipe = order.recipe.options, order.recipe
    mode = str(options.get("mode", "int8_asym"))
    if mode not in _MODES:
        raise UnsupportedError(f"recipe {recipe.name}: mode {mode!r} is unknown, expected {', '.join(_MODES)}")
    excluded = operations_of(recipe, order.model, model)
    nncf = quiet_nncf()
    arguments: dict[str, Any] = {"mode": nncf.CompressWeightsMode(mode)}
    if excluded.operations:
        arguments["ignored_scope"] = nncf.IgnoredScope(names=list(excluded.operations))
    calibration = "uncalibrated"
    if mode.startswith("int4"):
        arguments |= _int4_arguments(nncf, recipe)
        if recipe.needs_calibration:
            feeds = calibration_feeds(order, default_limit=_SUBSET)
            arguments |= {"dataset": nncf.Dataset(feeds), "subset_size": len(feeds)}
            calibration = f"{_tuning(recipe)}, {len(feeds)} samples"
    order.report(0.3, f"compressing weights to {mode}")
    return nncf.compress_weights(model, **arguments), {"calibration": calibration, **excluded.labels()}


def _int4_arguments(nncf: Any, recipe: Recipe) -> dict[str, Any]:
    """What int4 alone takes. A layer whose width the group size does not divide gets the largest group that does."""
    options = recipe.options
    backup = str(options.get("backup_mode", "int8_asym"))
    backups = {"int8_asym": nncf.BackupMode.INT8_ASYM, "int8_sym": nncf.BackupMode.INT8_SYM,
               "none": nncf.BackupMode.NONE}  # fmt: skip
    if backup not in backups:
        raise UnsupportedError(
            f"recipe {recipe.name}: backup_mode {backup!r} is unknown, expected {', '.join(backups)}"
        )
    return {
        "group_size": int(options.get("group_size", 64)),
        "ratio": float(options.get("ratio", 1.0)),
        "all_layers": bool(options.get("all_layers", False)),
        "backup_mode": backups[backup],
        "awq": bool(options.get("awq", False)),
        "scale_estimation": bool(options.get("scale_estimation", False)),
        "advanced_parameters": nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
        ),
    }


def _tuning(recipe: Recipe) -> str:
    used = [name for name in ("awq", "scale_estimation") if recipe.options.get(name)]
    return " and ".join(used) or "sensitivity"
