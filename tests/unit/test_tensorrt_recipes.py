# SPDX-License-Identifier: Apache-2.0
"""Which TensorRT recipes a machine gets, and what their contracts say before anything is built."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compiler_svc.backends.tensorrt_kept import kept_key, key_facts
from dovetail.accuracy import AccuracyPolicy
from dovetail.fingerprint import Fingerprint
from dovetail.gate import policy_thresholds
from dovetail.recipe import PRECISIONS, Recipe
from dovetail.rules import Verdict, tensorrt_rules
from tests.fakes.machines import AVX2, FACTS, PI5, machine, nvidia

TRT = "11.4.0.106"


def gpu_machine(capability: str = "8.9", product: str = "NVIDIA L4", *, trt: str = TRT, l4t: str = "") -> Fingerprint:
    facts = {"l4t": l4t, "board": "nvidia,p3701"} if l4t else {}
    arch, features = ("aarch64", PI5) if l4t else ("x86_64", AVX2)
    device = replace(nvidia(capability, product), multiprocessors=58)
    details = {"tensorrt": {"cuda": "13.0"}}
    return machine(arch, features, gpu=device, class_facts=facts, details=details, tensorrt=trt)


def allowing(where: Fingerprint) -> Fingerprint:
    """The same machine, whose operator allows host code (T3)."""
    library = where.facts.runtimes["tensorrt"]
    allowed = replace(library, details={**library.details, "host_code_allowed": "true"})
    return replace(where, facts=replace(where.facts, runtimes={**where.facts.runtimes, "tensorrt": allowed}))


def names(recipes: tuple[Recipe, ...]) -> list[str]:
    return [recipe.name.removeprefix("tensorrt-") for recipe in recipes]


@pytest.mark.parametrize(
    ("where", "extra"),
    [
        (gpu_machine("7.5"), ["fp16-stripped"]),
        (gpu_machine("8.6"), ["fp16-stripped", "fp16-portable", "fp32-portable"]),
        (gpu_machine("9.0"), ["fp16-stripped", "fp8", "fp16-portable", "fp32-portable"]),
        (gpu_machine("8.7", "Orin", l4t="36.4.3"), ["fp16-stripped"]),  # nothing portable on a Jetson
        (gpu_machine("7.0"), []),
        (machine(), []),
    ],
)
def test_extra_recipes_are_what_the_gpu_can_do(where: Fingerprint, extra: list[str]) -> None:
    assert names(tensorrt_rules.extra_recipes(where, FACTS)) == extra


def test_no_name_is_both_a_default_and_an_extra_recipe() -> None:
    where = gpu_machine("9.0")
    both = names(tensorrt_rules.recipes(where, FACTS)) + names(tensorrt_rules.extra_recipes(where, FACTS))

    assert len(both) == len(set(both))


def test_every_recipe_is_strongly_typed_and_has_its_precision_in_the_graph() -> None:
    where = gpu_machine("9.0")
    graphs = {
        recipe.name: (recipe.precision, recipe.options["graph_precision"], recipe.options["strongly_typed"])
        for recipe in (*tensorrt_rules.recipes(where, FACTS), *tensorrt_rules.extra_recipes(where, FACTS))
    }

    assert all(typed for _, _, typed in graphs.values())
    assert {pair[:2] for pair in graphs.values()} == {
        ("fp16", "fp16"),
        ("fp32", "fp32"),
        ("tf32", "fp32"),
        ("bf16", "bf16"),
        ("int8", "qdq-s8s8"),
        ("fp8", "qdq-f8e4m3"),
    }


def test_an_unseen_gpu_takes_the_portable_plan_and_no_other() -> None:
    builder, other = gpu_machine(), allowing(gpu_machine("12.0", "GeForce RTX 5090"))
    known = (*tensorrt_rules.recipes(builder, FACTS), *tensorrt_rules.extra_recipes(builder, FACTS))

    verdicts = {}
    for recipe in known:
        contract = tensorrt_rules.contract_for(recipe, FACTS, builder, builder)
        found = [reason.verdict for rule in tensorrt_rules.RULES if (reason := rule(contract, other))]
        verdicts[recipe.name] = max(found, default=Verdict.OPTIMAL)

    usable = {name for name, verdict in verdicts.items() if verdict <= Verdict.SUBOPTIMAL}
    assert usable == {"tensorrt-fp16-portable", "tensorrt-fp32-portable"}


def test_a_jetson_on_jetpack_6_is_refused_what_tensorrt_11_built_and_takes_10() -> None:
    jetson = gpu_machine("8.7", "Orin", trt="10.3.0.30", l4t="36.4.3")
    recipe = tensorrt_rules.recipes(jetson, FACTS)[0]

    from_11 = tensorrt_rules.contract_for(recipe, FACTS, gpu_machine("8.7", "Orin", trt=TRT, l4t="38.2"), jetson)
    from_10 = tensorrt_rules.contract_for(recipe, FACTS, jetson, jetson)

    assert (from_10.text("trt"), from_10.text("l4t")) == ("10.3.0.30", "36.4.3")
    assert tensorrt_rules.t9_jetpack_takes_this_tensorrt(from_10, jetson) is None
    refusal = tensorrt_rules.t9_jetpack_takes_this_tensorrt(from_11, jetson)
    assert refusal is not None
    assert refusal.verdict is Verdict.RECOMPILE


def test_every_precision_has_gate_thresholds() -> None:
    for precision in PRECISIONS:
        assert policy_thresholds(precision, AccuracyPolicy()).min_snr_db > 0


# --- the key of what builds keep (T11)


def key_of(where: Fingerprint, recipe: str = "tensorrt-fp16", **options: bool | str) -> str:
    known = (*tensorrt_rules.recipes(where, FACTS), *tensorrt_rules.extra_recipes(where, FACTS))
    found = next(item for item in known if item.name == recipe)
    found = replace(found, options={**found.options, **options})
    return kept_key(found, tensorrt_rules.contract_for(found, FACTS, where, where), where)


def test_builds_that_differ_only_in_the_model_share_a_timing_cache() -> None:
    assert key_of(gpu_machine()) == key_of(gpu_machine()) != ""
    assert key_of(gpu_machine()) == key_of(gpu_machine(), "tensorrt-int8")  # kernels are timed by type and shape


def _changed(**accelerator: object) -> Fingerprint:
    where = gpu_machine()
    device = replace(where.facts.accelerators[0], **accelerator)  # type: ignore[arg-type]
    return replace(where, facts=replace(where.facts, accelerators=(device,)))


@pytest.mark.parametrize(
    "where",
    [
        _changed(product="NVIDIA L40S"),
        _changed(compute_capability="8.6"),
        _changed(multiprocessors=142),
        _changed(mig_profile="1g.10gb"),
        _changed(cuda="12.9"),
        gpu_machine(trt="11.4.0.107"),
    ],
)
def test_a_timing_cache_is_never_shared_across_devices_or_libraries(where: Fingerprint) -> None:
    assert key_of(where) != key_of(gpu_machine())


@pytest.mark.parametrize(
    "options",
    [{"tf32": True}, {"stripped": True}, {"version_compatible": True}, {"hardware_level": "ampere_plus"},
     {"editable_timing_cache": True}, {"build_route": "a"}],
)  # fmt: skip
def test_a_timing_cache_is_never_shared_across_builder_flags(options: dict[str, bool | str]) -> None:
    assert key_of(gpu_machine(), **options) != key_of(gpu_machine())


@pytest.mark.parametrize("where", [gpu_machine(trt="11.4.0"), _changed(multiprocessors=0), _changed(product="")])
def test_without_a_fact_of_the_key_nothing_is_kept(where: Fingerprint) -> None:
    assert key_of(where) == ""


def test_of_several_gpus_the_one_that_is_built_for_is_in_the_key() -> None:
    where = gpu_machine()
    second = replace(nvidia("9.0", "H100"), multiprocessors=132)
    both = replace(where, facts=replace(where.facts, accelerators=(*where.facts.accelerators, second)))
    recipe = tensorrt_rules.recipes(where, FACTS)[0]
    contract = tensorrt_rules.contract_for(recipe, FACTS, both, gpu_machine("9.0", "H100"))

    assert key_facts(recipe, contract, both)["product"] == "H100"
