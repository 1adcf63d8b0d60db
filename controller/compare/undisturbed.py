"""A comparison's launches told by their undisturbed inferences, the shortest of each burst. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from controller.evidence import Launch
from controller.verdicts import PAIRED_BURSTS
from edgefarm.model import ContenderResult, Scenario
from edgefarm.statistics import LaunchRatio, launch_ratio


def why_none(launches: Sequence[Launch], objective: str, scenario: Scenario) -> str:
    """Why a comparison has no ratio by minima; empty if it has one."""
    if objective != "latency_p50":
        return f"the objective is {objective}, which is not about single undisturbed inferences"
    if scenario.kind != "paced" or scenario.rate_per_s:
        return "only inferences back to back have bursts in which the shortest is the undisturbed one"
    if not all(_paired(x.reference.burst_min_ns, x.result.burst_min_ns) for x in launches):
        return "not every launch tells the minima of its bursts"
    return ""


def _paired(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) >= PAIRED_BURSTS


def minima_ratio(launch: Launch) -> LaunchRatio:
    """Reference over candidate of one launch, by the minima of its bursts, which have to be there."""
    return launch_ratio(_positive(launch.reference.burst_min_ns), _positive(launch.result.burst_min_ns))


def by_minima(launches: Sequence[Launch]) -> tuple[Launch, ...]:
    """The same launches with minima in the place of medians, for whoever judges by medians of bursts."""
    return tuple(replace(x, reference=_shortest(x.reference), result=_shortest(x.result)) for x in launches)


def _shortest(result: ContenderResult) -> ContenderResult:
    return replace(result, burst_p50_ns=result.burst_min_ns, p50_ns=round(median(_positive(result.burst_min_ns))))


def _positive(burst_ns: Sequence[int]) -> list[int]:
    return [max(1, ns) for ns in burst_ns]
