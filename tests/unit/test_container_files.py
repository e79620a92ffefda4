# SPDX-License-Identifier: Apache-2.0
"""The containers' recipe and its list of files agree, since nothing here builds images."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_everything_that_the_images_copy_is_there_and_let_into_the_build() -> None:
    lines = [line.split() for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()]
    copied = {
        name for words in lines if words[:1] == ["COPY"] and "--from" not in words[1] for name in words[1:-1]
    }  # fmt: skip
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[0] == "!"}

    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)


def test_every_package_of_the_distribution_is_copied() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}

    copied = (ROOT / "Dockerfile").read_text(encoding="utf-8")

    assert packages
    assert all(f"COPY {name} {name}" in copied for name in packages)
