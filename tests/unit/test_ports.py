from __future__ import annotations

import logging
from pathlib import Path

import pytest

from controller.ports import Ports
from edgefarm.errors import StorageError, UserError


def test_open_ports_are_those_of_the_last_time(tmp_path: Path) -> None:
    first = Ports(tmp_path)
    assert first.again("join", "127.0.0.1:0") == "127.0.0.1:0"
    first.took("127.0.0.1:4001", "[::1]:4002", members=False)
    again = Ports(tmp_path)
    assert again.again("join", "0.0.0.0:0") == "0.0.0.0:4001"
    assert again.again("main", "[::1]:0") == "[::1]:4002"


def test_a_port_that_is_named_is_taken(tmp_path: Path) -> None:
    Ports(tmp_path).took("127.0.0.1:4001", "127.0.0.1:4002", members=False)
    assert Ports(tmp_path).again("join", "127.0.0.1:7440") == "127.0.0.1:7440"


def test_those_who_know_another_address_are_not_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Ports(tmp_path).took("127.0.0.1:4001", "127.0.0.1:4002", members=False)
    with caplog.at_level(logging.WARNING):
        Ports(tmp_path).took("0.0.0.0:4001", "0.0.0.0:4002", members=True)
        assert not caplog.records
        Ports(tmp_path).took("0.0.0.0:4001", "0.0.0.0:4003", members=True)
        Ports(tmp_path).took("0.0.0.0:4009", "0.0.0.0:4003", members=True)
        Ports(tmp_path).took("0.0.0.0:4010", "0.0.0.0:4011", members=False)
    moved, lost = [record.getMessage() for record in caplog.records]
    assert moved.startswith("the main address was 0.0.0.0:4002 and is 0.0.0.0:4003: devices find it")
    assert lost.startswith("the join address was 0.0.0.0:4001 and is 0.0.0.0:4009: devices and users that know the former can't renew")


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_a_damaged_note_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ports.json").write_bytes(content)
    with pytest.raises(UserError, match=r"ports\.json: damaged .*: remove it, and name the ports .* --listen"):
        Ports(tmp_path)


def test_a_note_that_cannot_be_kept_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"ports\.json"):
        Ports(tmp_path / "absent").took("127.0.0.1:1", "127.0.0.1:2", members=False)
