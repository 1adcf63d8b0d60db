"""One launch: who runs when, what is counted, what is thrown away. The clock is a fake one."""

from __future__ import annotations

import gc
import math
from typing import Any

import numpy as np
import pytest

from agent.runner import schedule
from agent.runner.schedule import Feeds, Lane, Plan, Timed, run_launch, summaries


class FakeClock:
    """Time that passes only when something takes it."""

    def __init__(self) -> None:
        self.ns, self.cpu_ns, self.spinning_until = 0, 0, 0

    def perf_counter_ns(self) -> int:
        return self.ns

    def perf_counter(self) -> float:
        return self.ns / 1e9

    def process_time(self) -> float:
        return self.cpu_ns / 1e9

    def sleep(self, seconds: float) -> None:
        end = self.ns + math.ceil(seconds * 1e9)
        self.cpu_ns += max(0, min(end, self.spinning_until) - self.ns)
        self.ns = end


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(schedule, "time", fake)
    return fake


class FakeModel:
    """Takes `cost_ns`, in its first `slow` runs more, ever less so; its threads spin for `spin_ns` after a run."""

    def __init__(self, clock: FakeClock, log: list[str], key: str, cost_ns: int, *, slow: int = 0, spin_ns: int = 0) -> None:
        self._clock, self._log, self._key, self._cost = clock, log, key, cost_ns
        self._slow, self._spin = slow, spin_ns
        self.seen: list[Any] = []
        self.disturbed = 0

    def __call__(self, feeds: Feeds) -> None:
        switched = self._log[-1:] not in ([], [self._key])
        self.disturbed += switched and self._clock.spinning_until > self._clock.ns
        self._slow -= 1
        self._clock.ns += self._cost * (1 + max(0, self._slow + 1))
        self._clock.cpu_ns += self._cost
        self._clock.spinning_until = self._clock.ns + self._spin
        self._log.append(self._key)
        self.seen.append(feeds["x"][0])
        assert not gc.isenabled()


_FEEDS: list[Feeds] = [{"x": np.array([i])} for i in range(3)]


def _plan(**changes: Any) -> Plan:
    return Plan(**{"bursts": 4, "burst_ns": 1000, "min_inferences": 3, "warmup_ns": 100_000, "seed": "1/0", **changes})


def _runs(log: list[str]) -> list[str]:
    """The log with repetitions in a row folded."""
    return [key for i, key in enumerate(log) if i == 0 or log[i - 1] != key]


def test_bursts_last_long_enough_and_hold_enough(clock: FakeClock) -> None:
    log: list[str] = []
    lanes = {"fast": Lane(FakeModel(clock, log, "fast", 10), _FEEDS), "slow": Lane(FakeModel(clock, log, "slow", 700), _FEEDS)}
    timed = run_launch(lanes, _plan())
    assert timed["fast"].samples == [10] * 400  # 4 bursts of 1000 ns
    assert timed["slow"].samples == [700] * 12  # 4 bursts of at least 3
    assert timed["slow"].burst_p50_ns == [700] * 4
    assert gc.isenabled()


def test_every_block_holds_each_contender_once_in_random_order(clock: FakeClock) -> None:
    log: list[str] = []
    lanes = {key: Lane(FakeModel(clock, log, key, 400), _FEEDS) for key in "abcd"}
    timed = run_launch(lanes, _plan(bursts=40, warmup_ns=0))
    orders = set()
    warm_up = position = sum(t.warmup_inferences for t in timed.values())
    for _ in range(40):
        block: list[str] = []
        while len(block) < 4:
            count = 3 if position > warm_up and log[position - 1] == log[position] else 4  # no switch, nothing to discard
            assert len(set(log[position : position + count])) == 1
            block.append(log[position])
            position += count
        assert sorted(block) == list("abcd")
        orders.add(tuple(block))
    assert position == len(log)
    assert len(orders) > 8


def test_the_seed_decides_the_order(clock: FakeClock) -> None:
    def order(seed: str) -> list[str]:
        log: list[str] = []
        run_launch({key: Lane(FakeModel(clock, log, key, 400), _FEEDS) for key in "abcd"}, _plan(seed=seed))
        return _runs(log)

    assert order("1/0") == order("1/0")
    assert order("1/0") != order("1/1")


def test_the_first_inference_after_a_switch_is_not_counted(clock: FakeClock) -> None:
    log: list[str] = []
    models = {key: FakeModel(clock, log, key, 400) for key in "ab"}
    timed = run_launch({key: Lane(model, _FEEDS) for key, model in models.items()}, _plan(warmup_ns=0, bursts=3))
    for key, model in models.items():
        discarded = len(model.seen) - len(timed[key].samples) - timed[key].warmup_inferences
        switches = _runs(log[sum(t.warmup_inferences for t in timed.values()) :]).count(key)
        assert discarded == switches


def test_samples_are_fed_in_turn(clock: FakeClock) -> None:
    model = FakeModel(clock, [], "a", 400)
    run_launch({"a": Lane(model, _FEEDS)}, _plan())
    assert model.seen == [i % 3 for i in range(len(model.seen))]


def test_warm_up_ends_when_bursts_agree(clock: FakeClock) -> None:
    model = FakeModel(clock, [], "a", 100, slow=20)
    timed = run_launch({"a": Lane(model, _FEEDS)}, _plan())["a"]
    assert set(timed.samples) == {100}, "slow runs belong to the warm-up"
    assert 20 <= timed.warmup_inferences < 60


def test_warm_up_is_bounded(clock: FakeClock) -> None:
    model = FakeModel(clock, [], "a", 100, slow=10**6)
    timed = run_launch({"a": Lane(model, _FEEDS)}, _plan(warmup_ns=1000))["a"]
    assert timed.warmup_inferences <= 4


def test_spinning_threads_of_the_other_are_waited_for(clock: FakeClock) -> None:
    log: list[str] = []
    spinner = FakeModel(clock, log, "spinner", 1000, spin_ns=70_000_000)
    quiet = FakeModel(clock, log, "quiet", 1000)
    run_launch({"spinner": Lane(spinner, _FEEDS), "quiet": Lane(quiet, _FEEDS)}, _plan(bursts=10, warmup_ns=0))
    assert quiet.disturbed == 0


def test_endless_spinning_is_not_waited_for_endlessly(clock: FakeClock) -> None:
    lanes = {key: Lane(FakeModel(clock, [], key, 1000, spin_ns=10**12), _FEEDS) for key in "ab"}
    run_launch(lanes, _plan(bursts=2, warmup_ns=0))
    assert clock.ns < 8 * 0.25e9  # two warm-ups and at most four switches


def test_one_contender_waits_for_nobody(clock: FakeClock) -> None:
    run_launch({"a": Lane(FakeModel(clock, [], "a", 1000, spin_ns=10**9), _FEEDS)}, _plan(bursts=2, warmup_ns=0))
    assert clock.ns == (1 + 1 + 2 * 3) * 1000  # warm-up, discarded, two bursts of three


def test_a_rate_spaces_inferences(clock: FakeClock) -> None:
    starts: list[int] = []

    def run(feeds: Feeds) -> None:
        starts.append(clock.ns)
        clock.ns += 100_000

    timed = run_launch({"a": Lane(run, _FEEDS)}, _plan(bursts=1, min_inferences=5, warmup_ns=0, rate_per_s=1000.0))
    assert [b - a for a, b in zip(starts[-5:], starts[-4:])] == [1_000_000] * 4
    assert timed["a"].samples == [100_000] * 5


def test_the_collector_is_on_again_after_a_failure(clock: FakeClock) -> None:
    def run(feeds: Feeds) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        run_launch({"a": Lane(run, _FEEDS)}, _plan())
    assert gc.isenabled()


def _timed(samples: list[int], disturbed: list[bool]) -> Timed:
    return Timed(samples, disturbed, [51], 7)


def test_summaries_give_quantiles() -> None:
    found = summaries({"a": _timed(list(range(1, 102)), [False] * 101)})["a"]
    assert (found["n"], found["mean_ns"], found["p50_ns"], found["p90_ns"], found["p99_ns"]) == (101, 51.0, 51, 91, 100)
    assert (found["warmup_inferences"], found["burst_p50_ns"]) == (7, [51])
    assert (found["disturbed"], found["left_out"]) == (0, 0)


def test_inferences_that_lost_the_cpu_are_left_out_of_all_contenders() -> None:
    hit = _timed([100] * 20 + [9000] * 20, [False] * 20 + [True] * 20)
    spared = _timed([50] * 39 + [60], [False] * 39 + [True])
    found = summaries({"hit": hit, "spared": spared})
    assert (found["hit"]["n"], found["hit"]["p99_ns"], found["hit"]["disturbed"], found["hit"]["left_out"]) == (20, 100, 20, 20)
    assert (found["spared"]["n"], found["spared"]["p99_ns"], found["spared"]["left_out"]) == (39, 50, 1)


def test_a_few_disturbances_are_the_machines_own_and_stay() -> None:
    found = summaries({"a": _timed([100] * 98 + [9000] * 2, [False] * 98 + [True] * 2)})["a"]
    assert (found["n"], found["disturbed"], found["left_out"]) == (100, 2, 0)
    assert found["p99_ns"] > 8000


def test_nothing_is_left_out_where_too_little_would_be_left() -> None:
    found = summaries({"a": _timed([100] * 4 + [9000] * 20, [False] * 4 + [True] * 20), "b": _timed([50] * 40, [False] * 40)})
    assert [found[k]["left_out"] for k in "ab"] == [0, 0]
    assert found["a"]["disturbed"] == 20


def test_each_inference_knows_whether_it_was_disturbed(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    switches = 0

    def run(feeds: Feeds) -> None:
        nonlocal switches
        clock.ns += 400
        switches += int(feeds["x"][0]) == 2

    monkeypatch.setattr(schedule, "_involuntary_switches", lambda: switches)
    timed = run_launch({"a": Lane(run, _FEEDS)}, _plan(warmup_ns=0))["a"]
    assert len(timed.disturbed) == len(timed.samples)
    assert sum(timed.disturbed) == pytest.approx(len(timed.samples) / 3, abs=1)
