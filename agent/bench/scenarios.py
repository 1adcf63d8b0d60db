"""What the scenario of an order asks of a launch: the plan that the runner gets, and how long that may take. Pure."""

from __future__ import annotations

from typing import Any

from edgefarm.model import LatencyWork, Scenario

_LEAST_REQUESTS = 64  # of a launch under `server`, where the order says no duration: enough for a p90 (MLPerf LoadGen's floor)


def refusal(scenario: Scenario) -> str:
    """Why this agent can't apply a load; empty if it can."""
    if scenario.kind not in ("paced", "offline", "sustained", "server"):
        return f"scenario {scenario.kind!r} is not available in this version of the agent"
    if scenario.rate_per_s is not None and not 0 < scenario.rate_per_s <= 1e6:
        return f"scenario {scenario.kind!r} with rate_per_s {scenario.rate_per_s:g}: must be above 0 and at most 1e6"
    if scenario.kind == "server" and scenario.rate_per_s is None:
        return "scenario 'server' needs rate_per_s, the requests per second"
    if any(size < 1 for size in scenario.batch_sizes):
        return f"scenario {scenario.kind!r} with batch sizes {', '.join(map(str, scenario.batch_sizes))}: must be at least 1"
    return ""


def takes_turns(scenario: Scenario) -> bool:
    """Whether contenders run in short bursts by turns, inferences of a burst at once after each other.

    At a rate the idle gaps are the matter, and what a library's threads do in them.
    """
    return scenario.kind == "offline" or (scenario.kind == "paced" and not scenario.rate_per_s)


def plan(work: LatencyWork, seed: str) -> dict[str, Any]:
    """The parameters of `agent.runner.lanes.Plan`; `seed` is that of (work, launch)."""
    scenario = work.scenario
    return {
        "bursts": work.bursts, "burst_ns": work.burst_ns, "min_inferences": work.min_inferences, "warmup_ns": work.warmup_ns,
        "seed": seed, "kind": scenario.kind, "rate_per_s": scenario.rate_per_s, "batch_sizes": list(scenario.batch_sizes),
        "duration_ns": duration_ns(work),
    }  # fmt: skip


def duration_ns(work: LatencyWork) -> int:
    """Length of a contender's stretch in one launch; 0 where bursts decide."""
    scenario, bursts_ns = work.scenario, work.bursts * work.burst_ns
    if scenario.kind == "sustained":
        return scenario.duration_ns or bursts_ns
    if scenario.kind == "server":
        return scenario.duration_ns or max(bursts_ns, round(_LEAST_REQUESTS * 1e9 / (scenario.rate_per_s or 1)))
    return 0


def idle_ns(work: LatencyWork, contenders: int) -> int:
    """How much of a launch passes by the clock, whatever the models take: gaps between inferences, stretches of a fixed length."""
    scenario = work.scenario
    if scenario.kind == "paced" and scenario.rate_per_s:
        return round(work.bursts * (work.min_inferences + 1) * 1e9 / scenario.rate_per_s) * contenders
    return 2 * duration_ns(work) * contenders  # a queue that has grown is served for a while yet


def inferences(work: LatencyWork) -> int:
    """Of one contender, at the least: one to warm up, one more before each burst. A row of a batch counts as an inference."""
    scenario, bursts = work.scenario, work.bursts * (1 + work.min_inferences)
    if scenario.kind == "offline":
        return 1 + (bursts + 1) * sum(scenario.batch_sizes or (1,))
    return 1 + bursts if scenario.kind == "paced" else 2
