"""What a launch amounts to: counts, quantiles, the shape over time. Runs in the child, after the timing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.runner.lanes import Timed
from edgefarm.statistics.regimes import RegimeKind, judge

_DISTURBED_SHARE = 0.05  # of a launch's inferences; more is not this machine's own doing but other processes'
_LEAST_LEFT = 5
_PARTS = 8  # of a stretch, which has no bursts
_MOST_JUDGED = 20_000  # points of a series: what a small board judges in a fraction of a second
_OVERLOAD = "overload"  # a regime of `server`: requests come faster than they are served, and latencies grow without end

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]


def summaries(timed: Mapping[str, Timed], kind: str = "paced") -> dict[str, dict[str, Any]]:
    """Counts and quantiles (linear between order statistics) for the reply; names as in `edgefarm.model.ContenderResult`.

    Another process that takes the CPU away for a time slice, some milliseconds, hits a longer inference more often than a shorter
    one, so on a busy machine it moves not only latencies but ratios, however well bursts are interleaved. Where more than 5 % of a
    launch's inferences were hit, those are left out, of all contenders alike, as long as enough are left of each.

    What comes before the steady state is left out too, where the samples show a warm-up, and under `sustained` where they show that
    the device slowed down.

    Args:
        timed: by contender.
        kind: the scenario's.
    """
    disturbed = sum(sum(t.disturbed) for t in timed.values())
    enough = all(len(t.samples) - sum(t.disturbed) >= _LEAST_LEFT for t in timed.values())
    leave_out = enough and disturbed > _DISTURBED_SHARE * sum(len(t.samples) for t in timed.values())
    shared = [min(lengths) for lengths in zip(*(t.lengths for t in timed.values()))]
    return {key: _summary(t, kind, shared, leave_out=leave_out) for key, t in timed.items()}


def _summary(timed: Timed, kind: str, shared: Sequence[int], *, leave_out: bool) -> dict[str, Any]:
    disturbed = np.asarray(timed.disturbed, dtype=np.bool_)
    samples = np.asarray(timed.samples, dtype=np.float64)
    counted = ~disturbed if leave_out else np.ones(len(samples), dtype=np.bool_)
    if timed.sizes:
        return {**_batches(timed, samples, counted), **_counts(timed, len(samples) - int(counted.sum())), "regime": "", "unsettled": 0}
    regime, unsettled = _regime(timed, kind, samples, counted)
    used = samples[unsettled:][counted[unsettled:]]
    if len(used) < _LEAST_LEFT:
        unsettled, used = 0, samples[counted]
    throughput = len(samples) / (timed.elapsed_ns / 1e9) if timed.elapsed_ns else 0.0
    return {
        **_quantiles(used), "burst_p50_ns": _medians(samples, counted, timed.lengths) or _parts(used),
        "burst_min_ns": _minima(samples, counted, timed, shared), "samples_per_s": throughput, "batches": [],
        **_counts(timed, len(samples) - unsettled - len(used)), "regime": regime, "unsettled": unsettled,
    }  # fmt: skip


def _counts(timed: Timed, left_out: int) -> dict[str, int]:
    return {"warmup_inferences": timed.warmup_inferences, "disturbed": sum(timed.disturbed), "left_out": left_out}


def _quantiles(used: Numbers) -> dict[str, Any]:
    p50, p90, p99 = map(_whole, np.quantile(used, [0.5, 0.9, 0.99]))
    return {"n": len(used), "mean_ns": float(used.mean()), "p50_ns": p50, "p90_ns": p90, "p99_ns": p99}


def _batches(timed: Timed, samples: Numbers, counted: Flags) -> dict[str, Any]:
    """Each batch size; the contender's own numbers are those of the best, per row of a batch."""
    refused = [{"batch_size": size, "n": 0, "mean_ns": 0.0, "p50_ns": 0, "unavailable": why} for size, why in timed.refused.items()]
    own = {size: np.asarray(timed.sizes) == size for size in timed.batch_lengths}
    used = {size: samples[mine & counted] if (mine & counted).any() else samples[mine] for size, mine in own.items()}
    rows = [
        {"batch_size": size, "n": len(some), "mean_ns": float(some.mean()), "p50_ns": round(float(np.median(some))), "unavailable": ""}
        for size, some in used.items()
    ]
    best = min(used, key=lambda size: float(used[size].mean()) / size)
    bursts = _medians(samples[own[best]] / best, counted[own[best]], timed.batch_lengths[best])
    return {
        **_quantiles(used[best] / best), "burst_p50_ns": bursts, "burst_min_ns": [],
        "samples_per_s": best / float(used[best].mean()) * 1e9, "batches": sorted(refused + rows, key=lambda row: int(row["batch_size"])),
    }  # fmt: skip


def _medians(samples: Numbers, counted: Flags, lengths: Sequence[int]) -> list[int]:
    """Of each burst, over what counts in it; over all of it where nothing does: bursts of contenders are compared one by one."""
    edges = itertools.pairwise(np.cumsum([0, *lengths]))
    return [_whole(np.median(_counting(samples[low:high], counted[low:high]))) for low, high in edges]


def _minima(samples: Numbers, counted: Flags, timed: Timed, shared: Sequence[int]) -> list[int]:
    """Of the first `shared` inferences of each burst, as many of all contenders: the shortest of more is shorter.

    None where inputs of different shapes take turns (`cycle`): the shortest would be that of the smallest input.
    """
    starts = np.cumsum([0, *timed.lengths])
    parts = [slice(start, start + size) for start, size in zip(starts, shared)] if timed.cycle == 1 else []
    return [_whole(_counting(samples[part], counted[part]).min()) for part in parts]


def _counting(burst: Numbers, counted: Flags) -> Numbers:
    return burst[counted] if counted.any() else burst


def _whole(ns: float) -> int:
    return max(1, round(float(ns)))


def _parts(used: Numbers) -> list[int]:
    return [_whole(np.median(part)) for part in np.array_split(used, min(_PARTS, len(used)))]


def _regime(timed: Timed, kind: str, samples: Numbers, counted: Flags) -> tuple[str, int]:
    """The regime, and how many samples at the beginning are to be left out for it."""
    if timed.overloaded:
        return _OVERLOAD, 0
    series = np.asarray(timed.served, dtype=np.float64) if timed.served else samples
    positions = np.flatnonzero(counted) if timed.cycle == 1 else np.arange(len(series))  # a cycle is whole or it is none
    group = max(timed.cycle, -(-len(positions) // _MOST_JUDGED))
    kept = positions[: len(positions) // group * group].reshape(-1, group)
    grouped = series[kept].mean(axis=1) if timed.cycle > 1 else np.median(series[kept], axis=1)
    found = judge(grouped.tolist())
    settles = found.kind is RegimeKind.WARM_UP or (kind == "sustained" and found.kind is RegimeKind.SLOWDOWN)
    unsettled = int(kept[found.settled_from][0]) if settles and 0 < found.settled_from < len(kept) else 0
    return found.kind.value, unsettled
