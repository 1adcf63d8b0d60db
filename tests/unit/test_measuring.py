"""What a driver tells while it measures: what its orders wait for, from when to when."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from controller import measuring as measuring_module
from controller.artifacts import ArtifactStore
from controller.events import Events
from controller.evidence import Evidence, Group
from controller.farm import Farm
from controller.measuring import Measuring
from controller.planner import Step, next_step
from controller.scoring import Scoring
from controller.store import SqlStore
from edgefarm.errors import RunCancelled
from edgefarm.model import DeviceStatus, Heartbeat
from tests.fakes.devices import FakeClock, FakeDevice
from tests.fakes.orders import a_device
from tests.fakes.world import FakeWorld, Truth, make_group

LONG_S = 60.0


class FakeEvents(Events):
    """Keeps what is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.told: list[dict[str, Any]] = []
        self.changed = threading.Condition()

    def emit(self, event: str, text: str = "", **fields: Any) -> None:
        with self.changed:
            self.told.append({"event": event, "text": text, **fields})
            self.changed.notify_all()

    def wait_for_waits(self, states: list[str]) -> dict[str, Any]:
        """The first event that says that orders wait for devices in these states, and in no others."""

        def found() -> list[dict[str, Any]]:
            return [e for e in self.told if e["event"] == "waits" and [w["state"] for w in e["waits"]] == states]

        with self.changed:
            assert self.changed.wait_for(found, LONG_S), self.told
            return found()[0]


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    store = SqlStore(":memory:")
    yield Farm(store, ArtifactStore(tmp_path / "artifacts"), wall=lambda: 1000)
    store.close()


def test_what_orders_wait_for_is_told_as_it_changes(farm: Farm) -> None:
    device = FakeDevice(farm)
    device.attach()
    farm.lease(["bench-1"], "bob", 3600.0)
    run = farm.open_run("world", "spec", "{}", "me", {}).name
    group = make_group(
        [Truth("source", 10**6), Truth("fast", 10**5)], run=run, device_class=device.device.device_class, devices=("bench-1",)
    )
    events, ended = FakeEvents(), []

    def measure() -> None:
        try:
            Measuring(run, [group], farm, cast(Scoring, None), events).run()
        except RunCancelled as error:
            ended.append(error)

    measuring = threading.Thread(target=measure)
    measuring.start()
    leased = events.wait_for_waits(["leased"])
    assert leased["text"] == "waits for bench-1: leased to bob until 1970-01-01 01:00 UTC"
    assert leased["waits"] == [
        {
            "device": "bench-1", "orders": 1, "state": "leased", "holder": "bob", "until": "1970-01-01T01:00:01Z", "ahead": 0,
            "reason": "leased to bob until 1970-01-01 01:00 UTC",
        }
    ]  # fmt: skip
    farm.drain(["bench-1"], "eve")
    assert events.wait_for_waits(["draining"])["text"].endswith("drained by eve until it is released")
    farm.release(["bench-1"], None)
    assert events.wait_for_waits([])["text"] == ""
    farm.cancel_run(run)
    measuring.join(LONG_S)
    assert ended


class CountingFarm(Farm):
    """A farm that says how often it was asked for its devices."""

    looks = threading.Semaphore(0)

    def devices(self) -> Sequence[DeviceStatus]:
        found = super().devices()
        self.looks.release()
        return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_POLL_S", "_LOOK_EVERY_S", "LOST_AFTER_S", "COMES_WITHIN_S"):
        monkeypatch.setattr(measuring_module, name, 0.01)


@pytest.mark.usefixtures("quick")
def test_nobody_is_given_up_by_day_who_measures_at_night(tmp_path: Path) -> None:
    store, clock = SqlStore(":memory:"), FakeClock()
    farm = CountingFarm(store, ArtifactStore(tmp_path / "artifacts"), clock=clock, wall=lambda: 1000)
    device, events = FakeDevice(farm), FakeEvents()
    device.attach()
    device.say(Heartbeat(local_s=12 * 3600))
    device.hang_up()
    run = farm.open_run("world", "spec", "{}", "me", {}).name
    group = make_group(
        [Truth("source", 10**6), Truth("fast", 10**5)],
        run=run, device_class=device.device.device_class, devices=("bench-1",), window="22:00-05:00",
    )  # fmt: skip
    measuring = Measuring(run, [group], farm, cast(Scoring, None), events)
    thread = threading.Thread(target=measuring.run)
    thread.start()
    told = events.wait_for_waits(["window"])
    assert told["text"] == "waits for bench-1: its window 22:00-05:00 is closed: it is 12:00 there"
    assert told["waits"][0]["until"] == "1970-01-01T10:00:01Z"
    for _ in range(20):
        assert farm.looks.acquire(timeout=LONG_S)
    assert thread.is_alive()
    assert measuring.lost == {}
    clock.now += 10 * 3600
    farm.tick()
    thread.join(LONG_S)
    assert measuring.lost == {"bench-1": "its connection is gone"}, "now it is awaited"
    assert [e["event"] for e in events.told].count("waits") == 2
    store.close()


@pytest.mark.usefixtures("quick")
def test_a_class_whose_measuring_devices_are_lost_ends_with_the_reason(farm: Farm) -> None:
    one, two = FakeDevice(farm, a_device("a", "h1")), FakeDevice(farm, a_device("b", "h2"))
    one.attach()
    two.attach()
    two.hang_up()
    run = farm.open_run("world", "spec", "{}", "me", {}).name
    group = make_group(
        [Truth("source", 10**6), Truth("fast", 10**5)], run=run, device_class=one.device.device_class, devices=("a", "b"), only_on=("b",)
    )
    measuring = Measuring(run, [group], farm, cast(Scoring, None), FakeEvents())
    measuring.run()
    assert measuring.lost == {
        "a": "'measure.where' lets only b measure for its class, and that is lost",
        "b": "its connection is gone",
    }


def test_where_energy_decides_and_nobody_can_tell_it_nothing_is_measured(farm: Farm) -> None:
    run = farm.open_run("world", "spec", "{}", "me", {}).name
    group = make_group([Truth("source", 10**6), Truth("fast", 10**5)], run=run, objective="energy")
    measuring = Measuring(run, [group], farm, cast(Scoring, None), FakeEvents())
    evidence = measuring.run()
    assert (measuring.submitted, evidence[group.id].ended) == (0, frozenset())


def test_orders_that_name_devices_are_those_devices_evidence(farm: Farm) -> None:
    """A planner may order the same for each device of a class by name; each group sees its own."""
    run = farm.open_run("world", "spec", "{}", "me", {}).name
    world = FakeWorld([Truth("source", 10**6), Truth("fast", 10**5)])
    group = make_group(world.truths, run=run, device_class="c1")
    asked = []

    def plan(group_: Group, evidence: Evidence) -> Step:
        asked.append((group_.devices, dict(evidence.launches)))
        return Step("done", ())

    farm.submit([replace(next_step(group, Evidence()).orders[0], id=f"{run}/compare/{name}", device=name) for name in ("d1", "d2")])
    for name in ("d1", "d2"):
        device = FakeDevice(farm, replace(a_device(name, name), fingerprint={}))
        device.attach()
        order = farm.progress(run).orders[0 if name == "d1" else 1].order
        world.answer(order, name)
        device.say(*[replace(a, device=name) for a in world.orders[order.id].attempts])
    for names in (("d1",), ("d2",)):
        Measuring(run, [replace(group, devices=names)], farm, cast(Scoring, None), FakeEvents(), plan).run()
    assert [devices for devices, _ in asked] == [("d1",), ("d2",)]
    assert [{x.device for found in launches.values() for x in found} for _, launches in asked] == [{"d1"}, {"d2"}]
