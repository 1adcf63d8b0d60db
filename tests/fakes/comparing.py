"""Devices that answer a comparison's orders with launches of known truth."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from controller.evidence import CONTROL, Evidence, Group, fold
from controller.planner import Step
from edgefarm.model import (
    Attempt,
    Conditions,
    ContenderResult,
    EnergyResult,
    EnergyWork,
    Failure,
    LatencyResult,
    LatencyWork,
    Order,
    OrderState,
    OrderStatus,
    Outcome,
)
from tests.fakes.world import Truth, make_group

LAUNCH_NS = 10**9


def pair(ratio: float = 1.0, **changes: object) -> Group:
    """A group of two entries whose second takes 1 / `ratio` of the first's time."""
    return make_group([Truth("base", 1_000_000), Truth("new", round(1_000_000 / ratio))], constraints={}, **changes)


@dataclass
class Answering:
    """Answers orders.

    Attributes:
        ratio, control: the first side's time over the second's, and over that of its own copy.
        spread: sd of a launch's log ratio.
        bursts: of each launch, whose minima are told; 0: no bursts, as from agents that tell no minima.
        shortest: the first side's time over the second's in undisturbed inferences, None: as in typical ones; its sd is `shortest_spread`.
        fails: contender -> failure.
    """

    ratio: float = 1.0
    spread: float = 0.003
    seed: int = 0
    control: float = 1.0
    bursts: int = 0
    shortest: float | None = None
    shortest_spread: float = 0.001
    fails: dict[str, Failure] = field(default_factory=dict)
    energy: dict[str, EnergyResult] = field(default_factory=dict)
    conditions: Conditions = field(default_factory=Conditions)
    orders: dict[str, OrderStatus] = field(default_factory=dict)

    def run(self, group: Group, plan: Callable[[Group, Evidence], Step], most: int = 100) -> Evidence:
        """Answers until the planner wants nothing; at most `most` steps."""
        for _ in range(most):
            evidence = fold(list(self.orders.values()), group.device_class, {})
            step = plan(group, evidence)
            if not step.orders:
                return evidence
            for order in step.orders:
                self.answer(order)
        raise AssertionError(f"the planner still wants {step}")

    def answer(self, order: Order) -> None:
        work = order.work
        if isinstance(work, LatencyWork):
            attempts = [self._attempt(order, index, self._launch(work, index)) for index in work.launches]
        else:
            assert isinstance(work, EnergyWork)
            attempts = [self._attempt(order, 0, self.energy[work.contender.key])]
        self.orders[order.id] = OrderStatus(order, OrderState.DONE, order.device, tuple(attempts))

    def _attempt(self, order: Order, index: int, outcome: Outcome) -> Attempt:
        return Attempt(order.id, index, order.device, 1_000_000 + index, LAUNCH_NS, outcome, self.conditions)

    def _launch(self, work: LatencyWork, index: int) -> LatencyResult:
        chance = random.Random(f"{self.seed} {index}")
        shared = chance.gauss(0, 0.1)  # load that slows all of a launch
        reference = work.contenders[0].key
        return LatencyResult(tuple(self._result(c.key, c.key == reference, shared, chance) for c in work.contenders))

    def _result(self, key: str, reference: bool, shared: float, chance: random.Random) -> ContenderResult:
        if key in self.fails:
            return ContenderResult(key, failure=self.fails[key])
        faster = 1.0 if reference else self.control if key == CONTROL else self.ratio
        noise = 0.0 if reference else chance.gauss(0, self.spread)
        ns = round(1e6 * math.exp(shared + noise) / faster)
        result = ContenderResult(key, 200, float(ns), ns, round(1.1 * ns), round(1.3 * ns), 10_000_000, 2_000_000)
        if not self.bursts:
            return result
        undisturbed = self.shortest if self.shortest is not None and not reference and key != CONTROL else faster
        lowest = round(0.9e6 * math.exp(shared + (0.0 if reference else chance.gauss(0, self.shortest_spread))) / undisturbed)
        return replace(result, burst_p50_ns=(ns,) * self.bursts, burst_min_ns=(lowest,) * self.bursts)


def cut(answering: Answering, keep: int) -> Answering:
    """As a restart finds it: only the first `keep` orders."""
    return replace(answering, orders=dict(list(answering.orders.items())[:keep]))
