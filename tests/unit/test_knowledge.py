"""Where tables of other devices come from: other classes of the run, and runs that ended before it began."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import pytest

from controller.control import Control
from controller.knowledge import Knowledge, earlier, table
from controller.planner import next_step
from edgefarm.errors import RunCancelled
from edgefarm.model import CANCELLED, OrderStatus, Progress, Run
from tests.fakes.world import FakeWorld, Truth, entry, make_group

TRUTHS = (Truth("source", 1_000_000), *(Truth(f"v{i:02d}", 300_000 + 40_000 * i) for i in range(20)))


@dataclass
class Store:
    """Runs and their orders, as far as a driver asks for them here."""

    known: dict[str, tuple[Run, tuple[OrderStatus, ...]]]

    def runs(self, campaign: str = "", *, brief: bool = False) -> list[Run]:
        return [run for run, _ in self.known.values()]

    def progress(self, run: str, since: int = -1, wait_s: float = 0.0) -> Progress:
        if self.known[run][0].state == CANCELLED:
            raise RunCancelled(f"run {run!r} was cancelled")  # as the controller does
        return Progress(1, self.known[run][1])


def a_run(name: str, state: str, began: int, finished: int) -> Run:
    return Run(name, name.split("@")[0], int(name.split("@")[1]), "", "", state, started_unix_ms=began, finished_unix_ms=finished)


def played(device_class: str, seed: int) -> FakeWorld:
    world = FakeWorld(TRUTHS, seed=seed)
    world.run(make_group(TRUTHS, device_class=device_class))
    return world


def test_a_table_is_the_log_of_candidate_over_baseline() -> None:
    world, group = FakeWorld(TRUTHS, noise=0.001), make_group(TRUTHS)
    evidence = world.run(group)
    found = table(evidence, group.baseline.key)
    assert set(found) == {e.key for e in group.entries}
    for truth in TRUTHS:
        assert found[entry(truth).key] == pytest.approx(math.log(truth.latency_ns / 1e6), abs=0.01)


def test_a_class_whose_screening_is_over_spares_another_most_of_its_own() -> None:
    plans = Knowledge()
    screened = []
    for i in range(5):
        group = make_group(TRUTHS, run="world@1", device_class=f"c{i}", devices=(f"d{i}",))
        world = FakeWorld(TRUTHS, seed=i)
        for _ in range(100):
            step = plans.next_step(group, world.evidence(group))
            for order in step.orders:
                world.answer(order, f"d{i}")
            if not step.orders:
                break
        screened.append(len(world.evidence(group).screened) - 1)
    assert screened[:3] == [20, 20, 20]  # with fewer than three tables nobody is left out
    assert screened[4] < 12


def test_runs_that_had_ended_when_this_one_began_are_known() -> None:
    old = played("c1", 1)
    orders = tuple(old.orders.values())
    elsewhere = tuple(replace(s, order=replace(s.order, device_class="c2")) for s in orders)
    store = Store(
        {
            "old@1": (a_run("old@1", "done", 10, 20), (*orders, *elsewhere)),
            "late@1": (a_run("late@1", "done", 10, 40), orders),
            "open@1": (a_run("open@1", "measuring", 10, 0), orders),
            "cancelled@1": (a_run("cancelled@1", CANCELLED, 10, 20), orders),
            "mine@2": (a_run("mine@2", "measuring", 30, 0), orders),
        }
    )
    found = earlier(cast(Control, store), "mine@2")
    baseline = entry(TRUTHS[0]).key
    assert set(found) == {f"old@1/c1/{baseline}", f"old@1/c2/{baseline}"}
    group = make_group(TRUTHS)
    with_them, without = (
        Knowledge(found).next_step(group, FakeWorld(TRUTHS).evidence(group)),
        next_step(group, FakeWorld(TRUTHS).evidence(group)),
    )
    assert len(with_them.orders) == 1
    assert len(without.orders) == 7
