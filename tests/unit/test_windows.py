"""Parts of the day in which devices measure: over midnight, and in nights in which the clocks change."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefarm.windows import DAY_S, Window, is_open, local_second, parse

MINUTES = st.integers(0, 24 * 60 - 1)
SECONDS = st.integers(0, DAY_S - 1)


def text_of(begin: int, end: int) -> str:
    return f"{begin // 60:02d}:{begin % 60:02d}-{end // 60:02d}:{end % 60:02d}"


@given(MINUTES, MINUTES, SECONDS)
def test_what_is_outside_is_inside_of_the_rest_of_the_day(begin: int, end: int, local_s: int) -> None:
    if begin == end:
        with pytest.raises(ValueError, match="is empty"):
            parse(text_of(begin, end))
        return
    window, rest = parse(text_of(begin, end)), parse(text_of(end, begin))
    assert window.holds(local_s) != rest.holds(local_s)
    assert window.holds(local_s) == is_open(text_of(begin, end), local_s)


@given(MINUTES, MINUTES, SECONDS)
def test_it_opens_when_it_says(begin: int, end: int, local_s: int) -> None:
    if begin == end:
        end = (end + 1) % (24 * 60)
    window = parse(text_of(begin, end))
    wait_s = window.opens_in_s(local_s)
    assert 0 <= wait_s < DAY_S
    assert (wait_s == 0) == window.holds(local_s)
    assert window.holds((local_s + wait_s) % DAY_S)
    if wait_s:
        assert not window.holds((local_s + wait_s - 1) % DAY_S)
        assert (local_s + wait_s) % DAY_S == window.begin_s


def test_ends_belong_to_what_follows() -> None:
    night = parse("22:00-05:00")
    assert night == Window(79_200, 18_000)
    assert [night.holds(s) for s in (79_199, 79_200, 0, 17_999, 18_000)] == [False, True, True, True, False]
    assert parse("00:00-24:00") == Window(0, DAY_S)
    assert parse("12:00-24:00").holds(DAY_S - 1)


@pytest.mark.parametrize(
    "text", ["", "22-05", "22:00", "22:00-5:00", "24:00-05:00", "22:60-05:00", "22:00 - 05:00", "22:00-05:00 ", "22:00-24:01"]
)
def test_what_is_no_window_is_never_open(text: str) -> None:
    with pytest.raises(ValueError, match=r"no part of the day|a day ends at 24:00"):
        parse(text)
    assert not any(is_open(text, s) for s in range(0, DAY_S, 1800))


def test_who_knows_no_time_is_outside() -> None:
    assert not is_open("00:00-24:00", None)
    assert local_second(0) is None
    assert local_second(1_700_000_000_000) is None, "a board without a battery starts with the time at which its system was made"


@pytest.fixture
def central_europe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    yield
    monkeypatch.undo()
    time.tzset()


def clock(utc: str) -> str:
    local_s = local_second(round(datetime.fromisoformat(utc).replace(tzinfo=timezone.utc).timestamp() * 1000))
    assert local_s is not None
    return f"{local_s // 3600:02d}:{local_s // 60 % 60:02d}:{local_s % 60:02d}"


@pytest.mark.usefixtures("central_europe")
@pytest.mark.parametrize(
    ("utc", "local"),
    [
        ("2026-03-29T00:59:59", "01:59:59"), ("2026-03-29T01:00:00", "03:00:00"),  # an hour is left out
        ("2026-10-25T00:30:00", "02:30:00"), ("2026-10-25T01:30:00", "02:30:00"),  # an hour comes twice
        ("2026-12-31T23:00:00", "00:00:00"), ("2026-07-01T21:59:59", "23:59:59"),
    ],
)  # fmt: skip
def test_clocks_that_change(utc: str, local: str) -> None:
    assert clock(utc) == local


def test_another_time_zone_needs_no_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = "2026-07-01T12:00:00"
    try:
        monkeypatch.setenv("TZ", "UTC0")
        assert clock(moment) == "12:00:00"
        monkeypatch.setenv("TZ", "IST-5:30")
        assert clock(moment) == "17:30:00"
    finally:
        monkeypatch.undo()
        time.tzset()
