# SPDX-License-Identifier: Apache-2.0
"""docs/coverage.md: what passed, what is refused and why, by operator. Made from outcomes, never written by hand."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from tests.coverage.case_runner import PASSED, RECIPES, REFUSED, WRONG

Outcomes = Mapping[str, Mapping[str, Sequence[str]]]

_VARIANT = re.compile(r"(_expanded.*|_\d+d.*|_example.*|_default.*|_axis.*|_negative.*|_keepdims.*|_do_not.*)$")


def summary_lines(outcomes: Outcomes) -> list[str]:
    """A table of counts for each kind and recipe."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for key, found in outcomes.items():
        for recipe, (status, _) in found.items():
            counts[key.partition("/")[0], recipe][status] += 1
            counts["all", recipe][status] += 1
    lines = ["| cases | recipe | passed | refused, with a reason | wrong |", "|---|---|---:|---:|---:|"]
    for (kind, recipe), count in sorted(counts.items(), key=lambda item: (item[0][0] == "all", item[0])):
        lines.append(f"| {kind} | {recipe} | {count[PASSED]} | {count[REFUSED]} | {count[WRONG]} |")
    return lines


def render(outcomes: Outcomes, tools: Mapping[str, str]) -> str:
    """The page."""
    versions = ", ".join(f"{name} {version}" for name, version in tools.items())
    return "\n".join(
        [
            "# Operator coverage",
            "",
            "Made by `make coverage`; do not edit. Every test case that the onnx package carries for back ends goes",
            "through intake (graphs of one node are not simplified), both back ends, the numeric gate and the engine,",
            "and its answer is held against the suite's own by the suite's own tolerances, or",
            "to a millionth of its largest value.",
            "",
            f"Made with {versions}, on one CPU (x86-64).",
            "",
            *summary_lines(outcomes),
            "",
            "*Refused* means that no artifact is offered: intake, operator scan, build or gate said no, and",
            "why. *Wrong* would be an artifact that passed the gate and answers something else than the suite.",
            "",
            "## Why cases are refused",
            "",
            *_reasons(outcomes),
            "",
            "## By operator",
            "",
            "Cases that passed of all; where that is not all, the reasons are those above.",
            "",
            *_operators(outcomes),
            "",
        ]
    )


def _reasons(outcomes: Outcomes) -> list[str]:
    counts: dict[str, Counter[str]] = {recipe: Counter() for recipe in RECIPES}
    examples: dict[str, str] = {}
    for key, found in outcomes.items():
        for recipe, (status, reason) in found.items():
            if status == REFUSED:
                short = _general(reason)
                counts[recipe][short] += 1
                examples.setdefault(short, key.partition("/")[2])
    every = sorted(set().union(*counts.values()), key=lambda text: -sum(count[text] for count in counts.values()))
    lines = [f"| reason | {' | '.join(RECIPES)} | such as |", f"|---|{'---:|' * len(RECIPES)}---|"]
    for text in every:
        numbers = " | ".join(str(counts[recipe][text]) for recipe in RECIPES)
        lines.append(f"| {text} | {numbers} | `{examples[text]}` |")
    return lines


def _general(reason: str) -> str:
    """A reason without names and numbers, so that equal ones are counted together."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "…", reason.splitlines()[0])
    text = re.sub(r"\b\d[\d.,e+-]*\b", "n", text)
    text = re.sub(r"output \S+:", "output …:", text)
    return text.replace("|", "\\|")[:160]


def _operators(outcomes: Outcomes) -> list[str]:
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: {recipe: [0, 0] for recipe in RECIPES})
    for key, found in outcomes.items():
        kind, _, name = key.partition("/")
        group = _VARIANT.sub("", name.removeprefix("test_")) if kind == "node" else kind
        for recipe, (status, _) in found.items():
            counts[group][recipe][0] += status == PASSED
            counts[group][recipe][1] += 1
    lines = [f"| cases | {' | '.join(RECIPES)} |", f"|---|{'---:|' * len(RECIPES)}"]
    for group, by_recipe in sorted(counts.items()):
        lines.append(f"| {group} | {' | '.join(f'{done}/{all_}' for done, all_ in by_recipe.values())} |")
    return lines
