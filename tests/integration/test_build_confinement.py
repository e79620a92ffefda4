# SPDX-License-Identifier: Apache-2.0
"""What a child in the real sandbox cannot reach: network, files, keys, processes, more memory."""

from __future__ import annotations

import socket
import textwrap
from pathlib import Path

import pytest

from compiler_svc.worker.build_spec import BuildResult, ChildLimits
from compiler_svc.worker.child_failure import ChildFailure, FailureKind
from compiler_svc.worker.sandbox import run_build
from dovetail.trust.key_files import write_signing_key
from dovetail.trust.keys import SigningKey
from tests.fakes.child_orders import FP32, LIMITS, silent, spec_of
from tests.fixtures_sandbox import directory, run_program, until_none

__all__ = ["directory"]


async def tried(directory: Path, text: str) -> tuple[set[str], str]:
    """Rights that a program did not have, and what it logged."""
    outcome = await run_program(
        directory,
        "import os, sys\nprint('confined', os.environ['DOVETAIL_CONFINED'], file=sys.stderr, flush=True)\n"
        + textwrap.dedent(text),
    )
    assert isinstance(outcome, ChildFailure)
    first, _, rest = outcome.log_tail.partition("\n")
    return set(first.removeprefix("confined ").split(",")), rest


def needs(right: str, gone: set[str]) -> None:
    if right not in gone:
        pytest.skip(f"this kernel or container does not let a build give up: {right}; builds say so in their labels")


async def test_child_cannot_reach_the_network(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = f"""
            import socket
            try:
                socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), timeout=5)
                print("reached", file=sys.stderr)
            except OSError as exc:
                print("refused", file=sys.stderr)
        """
        gone, said = await tried(directory, text)

    needs("network", gone)
    assert said == "refused\n"


async def test_child_writes_nowhere_but_in_its_directory(
    directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    text = f"""
        for place in ({str(outside)!r}, sys.argv[1], os.environ["TMPDIR"]):
            try:
                open(place + "/file", "w").close()
                print("written", file=sys.stderr)
            except OSError as exc:
                print("refused", exc.errno, file=sys.stderr)
    """

    gone, said = await tried(directory, text)

    needs("writing", gone)
    assert said == "refused 30\nwritten\nwritten\n"  # EROFS
    assert list(outside.iterdir()) == []


async def test_child_cannot_read_the_workers_signing_key(
    directory: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path_factory.mktemp("keys") / "worker.pem"
    write_signing_key(key, SigningKey.generate())
    monkeypatch.setenv("DOVETAIL_SIGNING_KEY", str(key))
    text = f"""
        import ctypes
        ctypes.CDLL(None).umount2({str(key)!r}.encode(), 2)  # MNT_DETACH
        print(len(open({str(key)!r}).read()), sorted(name for name in os.environ if "KEY" in name or "HIDDEN" in name),
              file=sys.stderr)
    """

    gone, said = await tried(directory, text)

    needs("mounts", gone)
    assert said == "0 []\n"
    assert b"PRIVATE KEY" in key.read_bytes()


async def test_child_sees_and_signals_no_process_of_others(directory: Path) -> None:
    text = """
        others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
        print(others, file=sys.stderr)
    """

    gone, said = await tried(directory, text)

    needs("processes", gone)
    assert said == "['1']\n"


async def test_child_has_no_capability_and_gets_none(directory: Path) -> None:
    text = """
        status = open("/proc/self/status").read()
        print([line.split()[1] for line in status.splitlines() if line[:6] in ("CapPrm", "CapEff", "CapBnd", "NoNewP")],
              file=sys.stderr)
    """

    gone, said = await tried(directory, text)

    needs("privileges", gone)
    none = "0" * 16
    assert said == f"['{none}', '{none}', '{none}', '1']\n"


async def test_fork_bomb_is_ended_whole(directory: Path) -> None:
    text = """
        import os, time
        for _ in range(9):  # 512 processes, were it not ended before
            try:
                if os.fork() == 0:
                    os.setsid()
            except OSError:
                time.sleep(0.01)
        time.sleep(600)
    """
    outcome = await run_program(directory, text, ChildLimits(wall_s=60, processes=30))

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("too_many_processes", FailureKind.RESOURCE), outcome
    assert "more than 30 processes" in outcome.message
    await until_none(directory)


async def test_memory_of_all_processes_together_is_limited(directory: Path) -> None:
    text = """
        import os, time
        for _ in range(4):
            if os.fork() == 0:
                break
        hoard = b"x" * (100 << 20)
        time.sleep(600)
    """
    outcome = await run_program(directory, text, ChildLimits(wall_s=60, memory_bytes=300 << 20))

    assert isinstance(outcome, ChildFailure)
    assert (outcome.code, outcome.kind) == ("out_of_memory", FailureKind.RESOURCE), outcome
    await until_none(directory)


async def test_build_reports_the_rights_it_did_not_have(directory: Path) -> None:
    gone, _ = await tried(directory, "")

    result = await run_build(directory, spec_of(FP32), limits=LIMITS, on_progress=silent)

    assert isinstance(result, BuildResult)
    assert set(result.confined) == gone
