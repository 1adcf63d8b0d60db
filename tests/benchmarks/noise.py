"""How long the planner's race takes, and how good its winner is, by how much launches differ: on simulated devices of known truth.

A campaign is played to its choice with `FakeWorld`: latencies like those that the example was measured to have, every contender of a
launch off by a lognormal factor. Time is counted as launches of that example take it (`_launch_s`), against measuring everything: the
accuracy and memory of every candidate, and ten launches of each in rounds with the baseline.

python -m tests.benchmarks.noise [--campaigns N]; the last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from controller.evidence import ACCURACY, COMPARE, CONFIRM, SCREEN, stage_of
from controller.planner import FINALISTS
from controller.selection import choose
from edgefarm.model import LatencyWork, OrderStatus
from tests.fakes.world import FakeWorld, Truth, make_group

SPREADS = (0.003, 0.01, 0.03, 0.05)  # of one contender from launch to launch
EXHAUSTIVE = 10  # launches of every candidate
_BASE_NS = 600_000
_ACCURACY_S, _MEMORY_S = 0.65, 0.9
_CHOOSING = (SCREEN, ACCURACY, COMPARE, CONFIRM)
# name: speed-up and form, as measured: those of one form differ in the values of their weights alone.
FASHION = {
    "static": (1.531, "tensor"),
    "channels": (1.520, "channel"),
    "percentile": (1.520, "channel"),
    "entropy": (1.520, "channel"),
    "7bit": (1.520, "channel"),
    "conv": (1.402, "conv"),
    "core": (1.395, "core"),
    "dynamic-matmul": (0.994, "dynamic-matmul"),
    "static-matmul": (0.989, "static-matmul"),
    "fp16": (0.877, "fp16"),
    "signed": (0.626, "signed"),
    "dynamic": (0.513, "dynamic"),
}
SPREAD_OUT = {f"v{i}": (speed, f"v{i}") for i, speed in enumerate((1.5, 1.48, 1.45, 1.4, 1.3, 1.2, 1.1, 1.02, 0.9, 0.8, 0.5))}
WORLDS = {"fashion": FASHION, "all of their own form": SPREAD_OUT}


def _launch_s(contenders: int, *, screening: bool = False) -> float:
    return 0.25 * contenders if screening else 0.45 + 0.26 * contenders


def _seconds(status: OrderStatus) -> float:
    work, stage = status.order.work, stage_of(status.order.id)
    if isinstance(work, LatencyWork):
        return len(work.launches) * _launch_s(len(work.contenders), screening=stage == SCREEN)
    return _ACCURACY_S


def _everything_s(candidates: int) -> float:
    rounds = -(-candidates // FINALISTS)
    return (candidates + 1) * (_ACCURACY_S + _MEMORY_S) + EXHAUSTIVE * rounds * _launch_s(1 + FINALISTS)


def campaign(truths: Sequence[Truth], spread: float, seed: int) -> tuple[float, float]:
    """(Share of the time that measuring everything takes, how much slower than the best the winner truly is.)"""
    world, group = FakeWorld(truths, noise=spread, seed=seed), make_group(truths)
    evidence = world.run(group)
    winner = choose(group, evidence, "d1").winner or group.baseline
    raced = sum(_seconds(s) for s in world.orders.values() if stage_of(s.order.id) in _CHOOSING)
    best = min(t.latency_ns for t in truths)
    return raced / _everything_s(len(truths) - 1), world.truth(winner.key).latency_ns / best - 1


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--campaigns", type=int, default=40, help="of each world and spread")
    given = options.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for name, world in WORLDS.items():
        others = [Truth(n, round(_BASE_NS / speed), 0.92, 700_000 + i, form=form) for i, (n, (speed, form)) in enumerate(world.items())]
        for spread in SPREADS:
            played = [campaign([Truth("source", _BASE_NS, 0.92, 2_800_000), *others], spread, seed) for seed in range(given.campaigns)]
            regrets = [regret for _, regret in played]
            told = {
                "spread": spread,
                "device_time_ratio": round(fmean(ratio for ratio, _ in played), 3),
                "mean_regret": round(fmean(regrets), 4),
                "above_2_percent": round(fmean(r > 0.02 for r in regrets), 3),
            }
            print(f"{name}: {told}", file=sys.stderr, flush=True)
            found.setdefault(name, []).append(told)
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    print(json.dumps({"worlds": found, "n": given.campaigns, "machine": machine, "command": "make bench-noise"}))


if __name__ == "__main__":
    main()
