"""One launch: who runs when, what is counted, what is thrown away. The clock is a fake one."""

from __future__ import annotations

import gc
import hashlib
import math
import random
import threading
from typing import Any

import numpy as np
import pytest

from agent.runner import lanes as lanes_module
from agent.runner import schedule, stretches
from agent.runner.lanes import Feeds, Lane, Plan
from agent.runner.schedule import run_launch
from agent.runtimes import RuntimeFailure


class FakeClock:
    """Time that passes only when something takes it."""

    def __init__(self) -> None:
        self.ns, self.spinning_until = 0, 0

    def perf_counter_ns(self) -> int:
        return self.ns

    def perf_counter(self) -> float:
        return self.ns / 1e9

    def sleep(self, seconds: float) -> None:
        self.ns += math.ceil(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    for module in (schedule, lanes_module, stretches):
        monkeypatch.setattr(module, "time", fake)
    monkeypatch.setattr(lanes_module, "others_run", lambda: fake.ns < fake.spinning_until)
    monkeypatch.setattr(stretches, "_SPIN_NS", 0)  # this clock does not move while one looks at it
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
    assert (timed["fast"].lengths, timed["slow"].lengths) == ([100] * 4, [3] * 4)
    assert gc.isenabled()


def test_every_block_holds_each_contender_once_in_random_order(clock: FakeClock) -> None:
    log: list[str] = []
    lanes = {key: Lane(FakeModel(clock, log, key, 400), _FEEDS) for key in "abcd"}
    timed = run_launch(lanes, _plan(bursts=40, burst_ns=2000, warmup_ns=0))
    orders = set()
    warm_up = position = sum(t.warmup_inferences for t in timed.values())
    for _ in range(40):
        block: list[str] = []
        while len(block) < 4:
            count = 5 if position > warm_up and log[position - 1] == log[position] else 6  # no switch, nothing to discard
            assert len(set(log[position : position + count])) == 1
            block.append(log[position])
            position += count
        assert sorted(block) == list("abcd")
        orders.add(tuple(block))
    assert position == len(log)
    assert len(orders) > 8


@pytest.mark.parametrize(("latency", "bursts"), [(10, 40), (400, 40), (500, 32), (1000, 16), (2000, 8), (4000, 8)])
def test_slow_models_get_fewer_bursts_never_fewer_than_eight(clock: FakeClock, latency: int, bursts: int) -> None:
    lanes = {"a": Lane(FakeModel(clock, [], "a", 10), _FEEDS), "b": Lane(FakeModel(clock, [], "b", latency), _FEEDS)}
    timed = run_launch(lanes, _plan(bursts=40, burst_ns=2000))
    assert len(timed["a"].lengths) == len(timed["b"].lengths) == bursts


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
    timed = run_launch({"a": Lane(model, _FEEDS)}, _plan(warmup_ns=50_000))["a"]
    assert set(timed.samples) == {100}, "slow runs belong to the warm-up"
    assert 20 <= timed.warmup_inferences < 110


def test_warm_up_does_not_wait_for_an_end_of_others_load(clock: FakeClock) -> None:
    chance = random.Random(1)

    class Loaded(FakeModel):
        def __call__(self, feeds: Feeds) -> None:
            self._cost = chance.randint(1000, 2000)
            super().__call__(feeds)

    timed = run_launch({"a": Lane(Loaded(clock, [], "a", 0), _FEEDS)}, _plan(warmup_ns=2_000_000))["a"]
    assert 3 <= timed.warmup_inferences < 400, "1,300 fill the whole time"


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


def test_bursts_are_as_long_as_the_wait_for_threads_that_spin(clock: FakeClock) -> None:
    def bursts(spin_ns: int) -> list[int]:
        lanes = {key: Lane(FakeModel(clock, [], key, 100_000, spin_ns=spin_ns), _FEEDS) for key in "ab"}
        return run_launch(lanes, _plan(bursts=40, burst_ns=4_000_000, warmup_ns=0))["a"].lengths

    assert bursts(0) == [40] * 40
    assert bursts(2_000_000) == [80] * 20, "as much time, in bursts of four times the wait"
    assert bursts(10_000_000) == [200] * 8, "as much time, in as few bursts as there may be"
    assert bursts(70_000_000) == [400] * 4


def test_a_thread_that_computes_is_seen_until_it_ends() -> None:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            hashlib.pbkdf2_hmac("sha256", b"", b"", 20_000)  # without the interpreter's lock

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        seen = sum(lanes_module.others_run() for _ in range(200))
    finally:
        stop.set()
        thread.join()
    assert seen > 100
    assert lanes_module.settle() < 200_000_000  # the kernel takes a moment to be done with it
    assert not lanes_module.others_run()


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


def test_each_inference_knows_whether_it_was_disturbed(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    switches = 0

    def run(feeds: Feeds) -> None:
        nonlocal switches
        clock.ns += 400
        switches += int(feeds["x"][0]) == 2

    monkeypatch.setattr(lanes_module, "involuntary_switches", lambda: switches)
    timed = run_launch({"a": Lane(run, _FEEDS)}, _plan(warmup_ns=0))["a"]
    assert len(timed.disturbed) == len(timed.samples)
    assert sum(timed.disturbed) == pytest.approx(len(timed.samples) / 3, abs=1)


def test_at_a_rate_the_first_inference_after_a_switch_has_its_gap_too(clock: FakeClock) -> None:
    starts: dict[str, list[int]] = {"a": [], "b": []}

    def of(key: str) -> Lane:
        def run(feeds: Feeds) -> None:
            starts[key].append(clock.ns)
            clock.ns += 100_000

        return Lane(run, _FEEDS)

    run_launch({"a": of("a"), "b": of("b")}, _plan(bursts=6, min_inferences=2, warmup_ns=0, burst_ns=1, rate_per_s=1000.0))
    for times in starts.values():
        for block in range(6):
            discarded, first, second = times[1 + 3 * block : 4 + 3 * block]
            assert (first - discarded, second - first) == (1_000_000, 1_000_000)


def test_who_is_slower_than_the_rate_is_never_rushed(clock: FakeClock) -> None:
    timed = run_launch({"a": Lane(FakeModel(clock, [], "a", 3_000_000), _FEEDS)}, _plan(warmup_ns=0, rate_per_s=1000.0))["a"]
    assert set(timed.samples) == {3_000_000}


def test_a_sustained_stretch_is_one_contenders_alone_and_has_no_pause(clock: FakeClock) -> None:
    log: list[str] = []
    slept = clock.ns
    lanes = {key: Lane(FakeModel(clock, log, key, 1000), _FEEDS) for key in "abc"}
    timed = run_launch(lanes, _plan(kind="sustained", duration_ns=200_000, warmup_ns=0))
    warm_up = sum(t.warmup_inferences for t in timed.values())
    assert sorted(_runs(log[warm_up:])) == list("abc")
    assert {key: len(t.samples) for key, t in timed.items()} == dict.fromkeys("abc", 200)
    assert clock.ns - slept == len(log) * 1000


def test_the_order_of_stretches_changes_from_launch_to_launch(clock: FakeClock) -> None:
    def order(seed: str) -> str:
        log: list[str] = []
        lanes = {key: Lane(FakeModel(clock, log, key, 1000), _FEEDS) for key in "abc"}
        run_launch(lanes, _plan(kind="sustained", duration_ns=50_000, warmup_ns=0, seed=seed))
        return "".join(_runs(log)[-3:])

    assert len({order(f"1/{launch}") for launch in range(12)}) > 3


def test_of_a_very_long_stretch_whole_slices_are_kept(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "MOST_SAMPLES", 100)
    model = FakeModel(clock, [], "a", 1000)
    timed = run_launch({"a": Lane(model, _FEEDS)}, _plan(kind="sustained", duration_ns=1_000_000, burst_ns=10_000))["a"]
    assert len(timed.samples) == len(timed.disturbed)
    assert 90 <= len(timed.samples) <= 110
    assert len(model.seen) - timed.warmup_inferences == 1000, "it runs on between the slices that are kept"


def test_a_stretch_holds_at_least_one_inference(clock: FakeClock) -> None:
    lanes = {"a": Lane(FakeModel(clock, [], "a", 10**9), _FEEDS)}
    assert run_launch(lanes, _plan(kind="sustained", duration_ns=1, warmup_ns=0))["a"].samples == [10**9]
    assert len(run_launch(lanes, _plan(kind="server", rate_per_s=1e-3, duration_ns=1, warmup_ns=0))["a"].samples) == 1


def _served(clock: FakeClock, cost_ns: int, rate_per_s: float = 1000.0, *, seed: str = "1/0") -> Any:
    lanes = {key: Lane(FakeModel(clock, [], key, cost_ns), _FEEDS) for key in ("a", "control")}
    return run_launch(lanes, _plan(kind="server", rate_per_s=rate_per_s, duration_ns=2 * 10**9, seed=seed))


def test_requests_come_by_chance_at_the_rate_and_all_contenders_get_the_same(clock: FakeClock) -> None:
    timed = _served(clock, 100_000)
    assert timed["a"].samples == timed["control"].samples
    assert len(timed["a"].samples) == pytest.approx(2000, abs=4 * math.sqrt(2000))
    assert timed["a"].elapsed_ns == pytest.approx(2 * 10**9, rel=0.01)
    assert not timed["a"].overloaded
    assert timed["a"].samples != _served(clock, 100_000, seed="1/1")["a"].samples


def test_a_latency_holds_the_wait_behind_others(clock: FakeClock) -> None:
    """Mean wait of an M/D/1 queue: utilisation / (2 (1 - utilisation)) service times (Pollaczek 1930, Khinchine 1932)."""
    waits = [w - 500_000 for seed in range(20) for w in _served(clock, 500_000, seed=f"1/{seed}")["a"].samples]
    assert min(waits) == 0
    assert sum(waits) / len(waits) == pytest.approx(250_000, rel=0.1)


@pytest.mark.parametrize(("cost_ns", "overloaded"), [(900_000, False), (1_100_000, True), (50_000_000, True)])
def test_overload_is_said_and_ends(clock: FakeClock, cost_ns: int, overloaded: bool) -> None:
    timed = _served(clock, cost_ns)
    assert timed["a"].overloaded is overloaded
    assert clock.ns < 2 * (1.3 * 2e9 + 60_000_000), "two stretches, each a quarter late at the latest"
    assert set(timed["a"].served) == {cost_ns}


def test_offline_measures_each_batch_size_of_each_contender(clock: FakeClock) -> None:
    def run(feeds: Feeds) -> list[Any]:
        clock.ns += 1000 + 100 * len(feeds["x"])
        return [feeds["x"]]

    axes: dict[str, dict[str, int | None]] = {"free": {"x": None}, "fixed": {"x": 1}}
    timed = run_launch({key: Lane(run, _FEEDS, of) for key, of in axes.items()}, _plan(kind="offline", batch_sizes=[1, 4, 4, 2]))
    assert set(zip(timed["free"].sizes, timed["free"].samples)) == {(1, 1100), (2, 1200), (4, 1400)}
    assert set(zip(timed["fixed"].sizes, timed["fixed"].samples)) == {(1, 1100)}
    lengths = timed["free"].batch_lengths
    assert {size: len(bursts) for size, bursts in lengths.items()} == {1: 4, 4: 4, 2: 4}
    assert {size: sum(bursts) for size, bursts in lengths.items()} == {n: timed["free"].sizes.count(n) for n in (1, 4, 2)}
    assert timed["fixed"].refused == dict.fromkeys((4, 2), "input 'x' takes batches of 1, no others")


def test_a_model_without_any_of_the_batch_sizes_fails_with_the_reasons(clock: FakeClock) -> None:
    lane = Lane(FakeModel(clock, [], "a", 10), _FEEDS, {"x": 1})
    with pytest.raises(RuntimeFailure, match="none of the batch sizes can be run: 2: input 'x' takes batches of 1, no others; 3: input"):
        run_launch({"a": lane}, _plan(kind="offline", batch_sizes=[2, 3]))
    assert gc.isenabled()


def test_inputs_of_several_shapes_come_in_a_cycle() -> None:
    alike, unlike = [{"x": np.ones(3)}, {"x": np.zeros(3)}], [{"x": np.ones(3)}, {"x": np.ones(3)}, {"x": np.ones(4)}]
    assert (Lane(lambda feeds: None, alike).cycle, Lane(lambda feeds: None, unlike).cycle) == (1, 3)
