"""Load for an energy window, and what the supervisor takes of its account."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest

from agent.runner import replies
from agent.runner.frames import Frame
from agent.runner.spend import spend
from edgefarm.errors import ProtocolError
from edgefarm.model import Stage

MS = 10**6


class FakeClock:
    """Time that passes with inferences and sleeps only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, takes_ns: int) -> None:
        self.now, self.takes_ns, self.fed = 0, takes_ns, list[int]()
        monkeypatch.setattr(time, "monotonic_ns", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)

    def run(self, feed: int) -> None:
        self.fed.append(feed)
        self.now += self.takes_ns


def _checked(marks: list[list[int]], duration_ns: int) -> list[list[int]]:
    assert marks[0] == [0, 0]
    assert all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(marks))
    assert marks[-1][0] >= duration_ns
    return marks


def test_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, 3 * MS)
    marks = _checked(spend(clock.run, [1, 2], 1000 * MS, None), 1000 * MS)
    assert marks[-1] == [1002 * MS, 334]
    assert clock.fed[:4] == [1, 2, 1, 2]


def test_marks_are_bounded_however_fast_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, MS // 100)
    marks = _checked(spend(clock.run, [1], 1000 * MS, None), 1000 * MS)
    assert marks[-1][1] == 100_000
    assert len(marks) == 1001


def test_at_a_rate_the_window_is_as_long_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, 3 * MS)
    marks = _checked(spend(clock.run, [1], 1000 * MS, 8.0), 1000 * MS)
    assert marks[-1] == [1000 * MS, 8]


def test_a_model_slower_than_its_rate_runs_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, 30 * MS)
    marks = _checked(spend(clock.run, [1], 900 * MS, 100.0), 900 * MS)
    assert marks[-1] == [900 * MS, 30]


def test_a_slow_model_runs_once_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, 5000 * MS)
    assert spend(clock.run, [1], 1000 * MS, None) == [[0, 0], [5000 * MS, 1]]


@pytest.mark.parametrize("marks", [None, 3, [3], [[1]], [[1, 2, 3]], [[1, -2]], [[1, 2.5]], [[True, 1]], [["1", 1]]])
def test_an_account_of_another_form_is_refused(marks: Any) -> None:
    with pytest.raises(ProtocolError, match="marks"):
        replies.checked({"do": "spend"}, Frame({"ok": {"marks": marks}}, b""), Stage.RUN)


def test_an_account_arrives_as_it_is() -> None:
    answer = replies.checked({"do": "spend"}, Frame({"ok": {"marks": [[5, 0], [9, 2]]}}, b""), Stage.RUN)
    assert answer == {"marks": [[5, 0], [9, 2]]}
