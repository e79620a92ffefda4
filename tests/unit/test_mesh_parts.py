# SPDX-License-Identifier: Apache-2.0
"""How the mesh starts a service: its settings, its port, and what of an earlier run is not believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovetail.errors import UnavailableError
from dovetail.mesh.parts import Service
from dovetail.mesh.process import TAIL_BYTES, log_tail
from dovetail.mesh.supervisor import read_port_file


def service(root: Path, port: int = 0) -> Service:
    return Service("compiler", "compiler_svc", root=root, port=port)


def test_a_service_gets_its_own_settings_over_the_inherited_environment(tmp_path: Path) -> None:
    part = service(tmp_path, 7001).part(
        {"DOVETAIL_DATA_DIR": "own"},
        address_variable="DOVETAIL_COMPILER_ADDRESS",
        environ={"DOVETAIL_DATA_DIR": "inherited", "PATH": "/bin", "DOVETAIL_COMPILER_ADDRESS": "0.0.0.0:1"},
    )

    assert part.environ == {
        "PATH": "/bin",
        "DOVETAIL_DATA_DIR": "own",
        "DOVETAIL_COMPILER_ADDRESS": "127.0.0.1:7001",
        "DOVETAIL_PORT_FILE": str(tmp_path / "run" / "compiler.port"),
    }
    assert part.program[1:] == ("-m", "compiler_svc")


def test_the_port_of_an_earlier_run_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "compiler.port").write_text("4711\n")

    part = service(tmp_path).part({}, address_variable="DOVETAIL_ADDRESS", environ={})

    assert part.environ["DOVETAIL_ADDRESS"] == "127.0.0.1:0"
    assert read_port_file(tmp_path / "run" / "compiler.port") is None


def test_a_service_that_has_not_started_has_no_address(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="compiler has not said"):
        _ = service(tmp_path).address


@pytest.mark.parametrize("content", ["", "70", "seven"])
def test_a_port_file_is_read_or_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "port").write_text(content)

    assert read_port_file(tmp_path / "port") == (70 if content == "70" else None)
    assert read_port_file(tmp_path / "missing") is None


def test_an_error_shows_the_end_of_a_long_log_and_says_so_of_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "long.log").write_text("early\n" * TAIL_BYTES + "the reason\n")
    (tmp_path / "empty.log").write_text("")

    assert log_tail(tmp_path / "long.log").endswith("the reason")
    assert len(log_tail(tmp_path / "long.log")) <= TAIL_BYTES
    assert log_tail(tmp_path / "empty.log") == log_tail(tmp_path / "missing.log") == "(no output)"
