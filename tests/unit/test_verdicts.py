"""May a comparison be believed: what conditions, samples and the control arm say."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.doubts import spoilt
from controller.evidence import Launch
from controller.verdicts import against, believed, latency, speedup, statistic, verdict, verdict_of_reference
from edgefarm.model import Conditions, ContenderResult, Trace, Verdict

CALM = Conditions(others_cpu=0.02, steal=0.0, others_cpu_peak=0.1, waited=0.01)


def _result(key: str, p50: float, **more: object) -> ContenderResult:
    return replace(ContenderResult(key, 800, p50 * 1.02, round(p50), round(p50 * 1.1), round(p50 * 1.3)), **more)  # type: ignore[arg-type]


def _launches(ratio: float = 1.0, n: int = 10, conditions: Conditions = CALM, spread: float = 0.004, seed: int = 0) -> list[Launch]:
    """Launches of a candidate that is `ratio` times as fast as a reference of 1 ms, with noise of `spread`."""
    noise = random.Random(seed)
    found = []
    for index in range(n):
        reference = 1e6 * (1 + noise.gauss(0, spread))
        value = 1e6 / ratio * (1 + noise.gauss(0, spread))
        found.append(Launch("o", index, "d", _result("c", value), _result("base", reference), conditions, 1))
    return found


def _with(launches: Sequence[Launch], change: Callable[[Launch], Launch], count: int) -> list[Launch]:
    """The first `count` launches changed."""
    return [change(x) if i < count else x for i, x in enumerate(launches)]


def _under(**conditions: object) -> Callable[[Launch], Launch]:
    return lambda x: replace(x, conditions=replace(x.conditions, **conditions))  # type: ignore[arg-type]


def _trace(quantity: str, first: float, low: float, high: float, source: str = "") -> tuple[Trace, ...]:
    return (Trace(quantity, source, 20, first, low, high, low),)


INJECTED: dict[str, tuple[Callable[[Launch], Launch], Verdict, str]] = {
    "flag": (_under(throttled=("firmware: under-voltage",)), Verdict.THROTTLED, "under-voltage"),
    "frequency": (_under(traces=_trace("busy_frequency_ratio", 1.0, 0.6, 1.0)), Verdict.THROTTLED, "fell from 100% to 60%"),
    "limit": (_under(traces=_trace("frequency_limit_hertz", 1.8e9, 1.2e9, 1.8e9, "cpu3")), Verdict.THROTTLED, "fell from 1.80 to 1.20"),
    "stopped": (_under(traces=_trace("runner_stopped", 0.0, 0.0, 1.0)), Verdict.INTERFERED, "stopped by a signal"),
    "stall": (lambda x: replace(x, result=replace(x.result, mean_ns=3e6)), Verdict.INTERFERED, "stood still"),
    "steal": (_under(steal=0.2), Verdict.INTERFERED, "hypervisor took 20%"),
    "contended": (_under(waited=0.4, others_cpu=1.2, others_cpu_peak=2.0), Verdict.INTERFERED, r"waited for a CPU \d+%"),
    "moment": (_under(traces=_trace("waiting_ratio", 0.0, 0.0, 0.7), others_cpu_peak=0.9), Verdict.INTERFERED, "waited for a CPU 70%"),
}  # fmt: skip


def test_who_waits_for_threads_of_its_own_is_not_interfered_with() -> None:
    own = _under(waited=0.3, others_cpu=0.05, others_cpu_peak=0.4, traces=_trace("waiting_ratio", 0.0, 0.0, 0.7))
    assert verdict(_with(_launches(1.05), own, 10))[0] is Verdict.STABLE
    assert verdict(_with(_launches(1.05), _under(waited=0.3, others_cpu=0.5), 10))[0] is Verdict.INTERFERED


def test_a_calm_device_gives_stable_numbers() -> None:
    for ratio in (1.0, 1.02, 3.0):
        assert verdict(_launches(ratio))[0] is Verdict.STABLE
    assert verdict_of_reference(_launches())[0] is Verdict.STABLE


@pytest.mark.parametrize("name", INJECTED)
@pytest.mark.parametrize("count", [1, 4, 10])
def test_what_is_injected_into_some_launches_is_named(name: str, count: int) -> None:
    change, expected, words = INJECTED[name]
    found, detail = verdict(_with(_launches(), change, count))
    assert found is expected
    assert re.search(words, detail), detail
    assert spoilt(_with(_launches(), change, count)[0]) is not None


@given(
    seed=st.integers(0, 10**6),
    ratio=st.floats(0.9, 1.1),
    count=st.integers(1, 10),
    names=st.lists(st.sampled_from(sorted(INJECTED)), min_size=1, max_size=3, unique=True),
)
def test_no_mixture_of_causes_makes_a_number_good(seed: int, ratio: float, count: int, names: list[str]) -> None:
    launches = _launches(ratio, seed=seed)
    for name in names:
        traced = replace(launches[0], conditions=CALM)
        added = INJECTED[name][0](traced)

        def change(x: Launch, added: Launch = added) -> Launch:
            theirs = added.conditions
            both = replace(x.conditions, traces=x.conditions.traces + theirs.traces, throttled=x.conditions.throttled + theirs.throttled)
            names_ = ("steal", "waited", "others_cpu", "others_cpu_peak")
            both = replace(both, **{name: max(getattr(both, name) or 0, getattr(theirs, name) or 0) for name in names_})
            return replace(x, conditions=both, result=replace(x.result, mean_ns=max(x.result.mean_ns, added.result.mean_ns)))

        launches = _with(launches, change, count)
    found, detail = verdict(launches)
    throttled = {INJECTED[n][1] for n in names} & {Verdict.THROTTLED}
    assert found is (Verdict.THROTTLED if throttled else Verdict.INTERFERED)
    assert detail


@given(seed=st.integers(0, 10**6), ratio=st.floats(0.5, 4.0))
def test_undisturbed_launches_are_never_called_throttled_or_interfered(seed: int, ratio: float) -> None:
    assert verdict(_launches(ratio, seed=seed))[0] in (Verdict.STABLE, Verdict.UNSTEADY)


@given(waited=st.floats(0, 1), more=st.floats(0, 1), ratio=st.floats(0.3, 3.0))
def test_more_waiting_never_makes_a_number_better(waited: float, more: float, ratio: float) -> None:
    def good(share: float) -> bool:
        return verdict(_launches(ratio, conditions=replace(CALM, waited=share)))[0] is Verdict.STABLE

    assert good(waited) or not good(min(1.0, waited + more))


def test_load_is_judged_by_the_difference_that_is_claimed() -> None:
    loaded = replace(CALM, waited=0.2, others_cpu=1.5)
    assert verdict(_launches(1.02, conditions=loaded))[0] is Verdict.INTERFERED
    assert verdict(_launches(3.8, conditions=loaded))[0] is Verdict.STABLE


def test_load_on_other_cores_is_not_held_against_a_runner_that_never_waited() -> None:
    server = replace(CALM, others_cpu=12.0, others_cpu_peak=30.0, waited=0.0)
    assert verdict(_launches(1.01, conditions=server))[0] is Verdict.STABLE


def test_a_kernel_that_does_not_tell_is_judged_by_its_interval() -> None:
    blind = Conditions(others_cpu=1.2, steal=0.0)
    assert verdict(_launches(1.0, conditions=blind))[0] is Verdict.STABLE
    found, detail = verdict(_launches(1.0, conditions=blind, spread=0.4))
    assert found is Verdict.INTERFERED
    assert "other processes used 1.2 cores" in detail


def test_a_wide_interval_without_a_cause_is_noise() -> None:
    found, detail = verdict(_launches(1.0, spread=0.4))
    assert found is Verdict.NOISY
    assert "only known to" in detail
    assert verdict(_launches(1.0, n=1)) == (Verdict.NOISY, "a single launch")


@pytest.mark.parametrize("name", ["flag", "frequency", "limit"])
def test_settled_throttling_is_valid_under_sustained(name: str) -> None:
    launches = [replace(x, result=replace(x.result, regime="slowdown")) for x in _with(_launches(1.3), INJECTED[name][0], 10)]
    found, detail = verdict(launches, scenario="sustained")
    assert found is Verdict.STABLE
    assert "settled while" in detail
    assert verdict(launches)[0] is Verdict.THROTTLED
    assert spoilt(launches[0], "sustained") is None


def test_what_did_not_settle_is_unsteady_under_sustained_too() -> None:
    launches = [replace(x, result=replace(x.result, regime="unsteady")) for x in _launches(1.3)]
    assert verdict(launches, scenario="sustained")[0] is Verdict.UNSTEADY


@pytest.mark.parametrize(("regime", "expected"), [("unsteady", Verdict.UNSTEADY), ("slowdown", Verdict.UNSTEADY), ("flat", Verdict.STABLE)])
@pytest.mark.parametrize("side", ["result", "reference"])
def test_samples_without_a_level(regime: str, expected: Verdict, side: str) -> None:
    def change(x: Launch) -> Launch:
        return replace(x, **{side: replace(getattr(x, side), regime=regime)})

    assert verdict(_with(_launches(), change, 7), scenario="server")[0] is expected
    assert verdict(_with(_launches(), change, 4), scenario="server")[0] is Verdict.STABLE
    assert verdict(_with(_launches(), change, 7))[0] is Verdict.STABLE  # bursts took turns: both sides met the same levels
    if side == "reference":
        assert verdict_of_reference(_with(_launches(), change, 7))[0] is expected


def test_a_slowdown_of_a_device_that_began_hot_is_throttling() -> None:
    hot = replace(CALM, settings={"start": "hot"})
    slowing = [replace(x, result=replace(x.result, regime="slowdown")) for x in _launches(conditions=hot)]
    found, detail = verdict(slowing)
    assert found is Verdict.THROTTLED
    assert "began above the temperature" in detail
    found, detail = verdict(_launches(conditions=hot))
    assert found is Verdict.STABLE
    assert "begun above the temperature" in detail


def test_a_control_arm_that_differs_from_its_twin_condemns_the_round() -> None:
    found, detail = verdict(_launches(1.05), control=_launches(1.04, spread=0.002))
    assert found is Verdict.NOISY
    assert "two copies of the reference differ by 4." in detail
    assert verdict(_launches(1.05), control=_launches(1.0))[0] is Verdict.STABLE
    assert verdict(_launches(2.0), control=_launches(1.04, spread=0.002))[0] is Verdict.STABLE  # twice as fast, whatever that was
    assert verdict(_launches(1.05), control=_launches(1.0, n=1))[0] is Verdict.STABLE  # says nothing


def test_a_ratio_that_moved_is_unsteady() -> None:
    moving = [*_launches(1.0, n=5, seed=1), *(replace(x, index=x.index + 5) for x in _launches(1.3, n=5, seed=2))]
    calm = [replace(x, conditions=CALM) for x in moving]
    assert verdict(calm)[0] in (Verdict.UNSTEADY, Verdict.NOISY)
    assert verdict([*_launches(1.0, n=5, spread=1e-3), *_launches(1.12, n=5, spread=1e-3)])[0] is Verdict.UNSTEADY


def test_who_cannot_keep_up_is_said_to_be_so() -> None:
    behind = [replace(x, result=replace(x.result, regime="overload")) for x in _launches(1.0)]
    found, detail = verdict(behind, scenario="server")
    assert found is Verdict.UNSTEADY
    assert "can't keep up" in detail
    base = [replace(x, reference=replace(x.reference, regime="overload", mean_ns=1e9)) for x in _launches(9.0, spread=0.2)]
    assert verdict(base, scenario="server")[0] is Verdict.STABLE


def test_spoilt_launches_are_left_out_where_enough_others_are_there() -> None:
    change = INJECTED["contended"][0]
    kept, why = believed(_with(_launches(), change, 4))
    assert [x.index for x in kept] == [4, 5, 6, 7, 8, 9]
    assert [text.split(":")[0] for text in why] == ["launch 0", "launch 1", "launch 2", "launch 3"]
    assert verdict(kept)[0] is Verdict.STABLE
    too_few = _with(_launches(), change, 6)
    assert believed(too_few) == (too_few, ())
    assert verdict(believed(too_few)[0])[0] is Verdict.INTERFERED


@given(bad=st.sets(st.integers(0, 9)), name=st.sampled_from(sorted(set(INJECTED) - {"stall"})), seed=st.integers(0, 1000))
def test_what_is_left_out_does_not_hang_on_the_numbers(bad: set[int], name: str, seed: int) -> None:
    def kept(ratio: float) -> list[int]:
        launches = [INJECTED[name][0](x) if x.index in bad else x for x in _launches(ratio, seed=seed)]
        return [x.index for x in believed(launches)[0]]

    assert kept(0.5) == kept(1.0) == kept(3.0)


def test_throughput_is_that_of_the_scenario() -> None:
    launches = [replace(x, result=replace(x.result, samples_per_s=4000.0)) for x in _launches()]
    assert latency(launches).throughput_per_s.value == pytest.approx(4000.0)
    assert statistic(launches[0].result, "throughput") == pytest.approx(250_000.0)
    assert statistic(launches[0].reference, "throughput") == launches[0].reference.mean_ns
    assert speedup(launches, objective="throughput").value == pytest.approx(1.02e6 / 250_000, rel=0.01)


def test_medians_are_compared_by_pairs_of_bursts() -> None:
    drift = [1_000_000 + 50_000 * i for i in range(8)]  # the machine slows down; both feel it, the last burst of one alone
    reference = _result("base", 1e6, burst_p50_ns=tuple(drift))
    candidate = _result("c", 0.9e6, burst_p50_ns=tuple([d // 2 for d in drift[:-1]] + [9_000_000]))
    one = Launch("o", 0, "d", candidate, reference, CALM, 1)
    assert speedup([one, replace(one, index=1)]).value == pytest.approx(2.0, rel=1e-3)
    assert speedup([one], objective="latency_p99").value == pytest.approx(1 / 0.9, rel=1e-3)
    disturbed = replace(one, result=replace(candidate, disturbed=400))
    assert speedup([disturbed]).value == pytest.approx(1 / 0.9, rel=1e-3)
    other = replace(one, result=replace(candidate, key="d", burst_p50_ns=tuple(drift)))
    between = against([one], [other])
    assert between is not None
    assert between.value == pytest.approx(2.0, rel=1e-3)
    assert against([one], [replace(other, index=5)]) is None
