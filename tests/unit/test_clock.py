"""The clock of a device that may have none."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.clock import Clock


class Machine:
    """Its clocks."""

    def __init__(self, unix_ms: int) -> None:
        self.unix_ms, self.monotonic_s = unix_ms, 100.0

    def clock(self, path: Path) -> Clock:
        return Clock(path, system=lambda: self.unix_ms, monotonic=lambda: self.monotonic_s)


def test_a_right_clock_is_believed(tmp_path: Path) -> None:
    machine = Machine(5000)
    clock = machine.clock(tmp_path / "clock")
    clock.heard(4000)
    assert clock.unix_ms() == 5000
    machine.unix_ms = 6000
    assert clock.unix_ms() == 6000


def test_a_wrong_clock_goes_on_from_what_was_heard(tmp_path: Path) -> None:
    machine = Machine(0)
    clock = machine.clock(tmp_path / "clock")
    clock.heard(7000)
    machine.monotonic_s += 2
    assert clock.unix_ms() == 9000
    clock.heard(8000)  # has passed already
    assert clock.unix_ms() == 9000


def test_a_restart_does_not_go_back(tmp_path: Path) -> None:
    machine = Machine(7000)
    machine.clock(tmp_path / "clock").keep()
    machine.unix_ms = 0
    clock = machine.clock(tmp_path / "clock")
    assert clock.unix_ms() == 7000
    machine.monotonic_s += 1
    clock.keep()
    assert machine.clock(tmp_path / "clock").unix_ms() == 8000


@pytest.mark.parametrize("content", ["", "nonsense", "1.5"])
def test_a_damaged_floor_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "clock").write_text(content)
    assert Machine(3000).clock(tmp_path / "clock").unix_ms() == 3000


def test_a_full_disk_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Machine(3000).clock(tmp_path / "absent" / "clock").keep()
    assert "may not know how late it is" in caplog.text
