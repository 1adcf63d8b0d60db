"""What to measure next to compare two candidates on one device. Pure: the same evidence gives the same orders on every restart.

Rounds of fresh launches, both sides and a second copy of the first (the control arm) in each, until the interval decides. The interval
holds at every look (`edgefarm.statistics.anytime_interval`), so looking after each round costs no error rate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from controller import orders
from controller.compare.judging import contender_key, failure_of, settled
from controller.compare.rules import ROUNDS, Rules
from controller.evidence import COMPARE, CONTROL, ENERGY, Evidence, Group
from controller.planner import Step
from edgefarm.model import Order


def next_step(group: Group, evidence: Evidence, rules: Rules) -> Step:
    """The next round, then energy; no orders: it is decided, or the budget is spent.

    Args:
        group: one device; its entries are the first side (the baseline) and the second.
    """
    if failure_of(group, evidence):
        return Step("done", ())
    rounds = (_round(group, index) for index in range(len(ROUNDS)))
    wanted = next((order for order in rounds if order.id not in evidence.ended), None)
    spent = evidence.ended and evidence.spent_ns > group.budget_ns
    if wanted is not None and not spent and not settled(group, evidence, rules):
        return Step(COMPARE, (wanted,))
    left = tuple(o for o in _energy(group, rules) if o.id not in evidence.ended)
    return Step(ENERGY if left else "done", left)


def on_device(order: Order, device: str) -> Order:
    """The same order for one device of its class, under a name of its own: each device is measured itself."""
    stage, _, digest = order.id.rpartition("/")
    name = f"{stage}/{hashlib.sha256(f'{digest} {device}'.encode()).hexdigest()[:16]}"
    return replace(order, id=name, device=device, only_on=())


def _round(group: Group, index: int) -> Order:
    """A side that is compared with itself is its own control arm."""
    base, new = group.entries[0], group.entries[-1]
    sides = [base] if contender_key(group) == CONTROL else [base, new]
    launches = range(ROUNDS[index - 1] if index else 0, ROUNDS[index])
    return on_device(orders.comparison(group, sides, launches, control=CONTROL), group.devices[0])


def _energy(group: Group, rules: Rules) -> Iterator[Order]:
    if rules.max_energy is not None:
        for entry in {e.key: e for e in group.entries}.values():
            yield on_device(orders.energy(group, entry), group.devices[0])
