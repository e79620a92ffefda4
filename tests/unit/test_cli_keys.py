# SPDX-License-Identifier: Apache-2.0
"""`dovetail keys`: what it makes, shows and lists, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dovetail.cli.app import make_app
from dovetail.trust.key_files import read_public_keys, read_signing_key


def run(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(make_app(), ["keys", *words], prog_name="dovetail")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "build-2031.pem"
    assert run("new", str(path)).exit_code == 0
    return path


def test_new_makes_a_pair_and_says_who_gets_which_half(tmp_path: Path) -> None:
    path = tmp_path / "worker.pem"

    done = run("new", str(path))

    assert done.exit_code == 0
    assert done.stdout == ""
    public = read_signing_key(path).public
    assert read_public_keys(tmp_path / "worker.pub.pem") == (public,)
    assert path.stat().st_mode & 0o777 == 0o600
    for part in (public.key_id, "DOVETAIL_SIGNING_KEY", "DOVETAIL_TRUSTED_KEYS"):
        assert part in done.stderr
    assert "PRIVATE" not in done.stderr


def test_new_never_replaces_a_key(key: Path) -> None:
    before = key.read_bytes()

    done = run("new", str(key))

    assert done.exit_code == 1
    assert "build-2031.pem already" in done.stderr
    assert key.read_bytes() == before


def test_show_tells_the_same_of_both_halves_and_never_the_secret(key: Path) -> None:
    shown = [run("show", str(path)) for path in (key, key.with_name("build-2031.pub.pem"))]

    public = read_signing_key(key).public
    assert {done.stdout for done in shown} == {f"{public.key_id}\n{public.to_pem().decode()}"}
    document = json.loads(run("show", str(key), "--json").stdout)
    assert document == [{"key_id": public.key_id, "public_pem": public.to_pem().decode()}]


def test_list_shows_what_a_node_would_trust(key: Path) -> None:
    other = key.with_name("next.pem")
    run("new", str(other))

    public = [read_signing_key(path).public.key_id for path in (key, other)]
    folder = json.loads(run("list", str(key.parent), "--json").stdout)
    table = run("list", str(key.with_name("next.pub.pem")))

    assert folder == [
        {"name": "build-2031.pub", "key_id": public[0]},
        {"name": "next.pub", "key_id": public[1]},
    ]
    assert public[1] in table.stdout
    assert "next.pub" in table.stdout


def test_list_fails_where_a_node_would_trust_nobody(tmp_path: Path) -> None:
    done = run("list", str(tmp_path))

    assert done.exit_code == 1
    assert "dovetail keys new" in done.stderr
    assert json.loads(run("list", str(tmp_path), "--json").stdout) == []


@pytest.mark.parametrize("command", ["show", "list"])
def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path, command: str) -> None:
    assert run(command, str(tmp_path / "nothing.pem")).exit_code == 2


def test_a_key_that_others_may_read_is_refused(key: Path) -> None:
    key.chmod(0o644)

    done = run("show", str(key))

    assert done.exit_code == 1
    assert "chmod 600 build-2031.pem" in done.stderr
