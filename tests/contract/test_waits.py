"""Why orders wait: for whom, until when, behind how many; the same in one process and over gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.artifacts import ArtifactStore
from controller.control import Control
from controller.farm import Farm
from controller.store import SqlStore
from edgefarm.model import Heartbeat, OrderEnded, Wait
from tests.fakes.devices import FakeClock, FakeDevice
from tests.fakes.orders import a_device, a_hello, an_attempt, an_order

HOUR_MS = 3_600_000


@pytest.fixture
def farm(tmp_path: Path, clock: FakeClock) -> Iterator[Farm]:
    store = SqlStore(":memory:")
    made = Farm(store, ArtifactStore(tmp_path / "artifacts"), heartbeat_s=5.0, clock=clock, wall=lambda: 1000)
    for owner in ("me", "bob", "eve"):
        made.open_run(owner, "spec", "{}", owner, {})
    yield made
    store.close()


def test_nobody_waits_who_is_served(control: Control, farm: Farm, device: FakeDevice) -> None:
    assert control.waits() == []
    control.submit([an_order(f"o{i}", run="me@1") for i in range(5)])
    assert control.waits("me@1") == [], "three wait, for their own run's only"
    assert control.waits("unknown@1") == []


def test_a_lease_says_who_has_it_and_until_when(control: Control, farm: Farm, device: FakeDevice) -> None:
    farm.lease(["bench-1"], "bob", 3600.0)
    control.submit([an_order("o1", run="me@1"), an_order("o2", run="me@1"), an_order("b1", run="bob@1")])
    reason = "leased to bob until 1970-01-01 01:00 UTC"
    assert control.waits() == [Wait("me@1", "bench-1", 2, "leased", "bob", HOUR_MS + 1000, reason=reason)]
    assert control.waits("bob@1") == []
    control.submit([replace(an_order("o3", run="me@1", device=""), device_class=device.device.device_class)])
    assert [(w.device, w.orders) for w in control.waits()] == [("bench-1", 3)]
    farm.release(["bench-1"], None)
    assert [(w.run, w.state) for w in control.waits()] == [("me@1", "busy")]


def test_a_drain_keeps_everybody_waiting(control: Control, farm: Farm, device: FakeDevice) -> None:
    farm.lease(["bench-1"], "bob", 3600.0)
    farm.drain(["bench-1"], "eve")
    control.submit([an_order("b1", run="bob@1")])
    reason = "leased to bob until 1970-01-01 01:00 UTC; drained by eve until it is released"
    assert control.waits() == [Wait("bob@1", "bench-1", 1, "draining", "eve", reason=reason)]


def test_others_come_first_and_then_fewer(control: Control, farm: Farm, device: FakeDevice, clock: FakeClock) -> None:
    control.submit([an_order(f"b{i}", run="bob@1", launches=(0,)) for i in range(4)])
    control.submit([an_order(f"e{i}", run="eve@1", launches=(0,)) for i in range(2)])
    control.submit([an_order("o1", run="me@1", launches=(0,))])
    # Bob's first one runs, his next is there too; so eve's first comes before his third, and then mine.
    assert control.waits("me@1") == [Wait("me@1", "bench-1", 1, "busy", "bob", ahead=3, reason="3 orders come first: bob@1 of bob runs")]
    assert control.waits("bob@1") == []
    clock.now += 10.0
    device.say(an_attempt("b0", 0), OrderEnded("b0"))  # bob has used 10 s: eve is next, then it is my turn
    assert [(w.run, w.ahead) for w in control.waits()] == [("eve@1", 2), ("me@1", 2)]
    assert {w.reason for w in control.waits()} == {"2 orders come first: bob@1 of bob runs"}
    device.say(an_attempt("b1", 0), OrderEnded("b1"))
    assert control.waits("me@1") == [], "it is there, next after that of eve"


def test_a_neighbour_is_named(control: Control, farm: Farm) -> None:
    one, two = FakeDevice(farm, a_device("a", "h")), FakeDevice(farm, a_device("b", "h"))
    one.attach()
    two.attach()
    control.submit([an_order("a1", run="bob@1", device="a"), an_order("b1", run="me@1", device="b")])
    reason = "1 order comes first: bob@1 of bob runs on 'a', of the same host"
    assert control.waits() == [Wait("me@1", "b", 1, "busy", "bob", ahead=1, reason=reason)]


def test_a_device_that_is_not_itself_says_so(control: Control, farm: Farm, device: FakeDevice) -> None:
    device.say(Heartbeat(paused=True))
    control.submit([an_order("o1", run="me@1")])
    reason = "paused: its user paused it: edge-agent pause --resume"
    assert control.waits() == [Wait("me@1", "bench-1", 1, "paused", reason=reason)]
    device.hang_up()
    assert [(w.state, w.reason) for w in control.waits()] == [("lost", "lost: its connection is gone")]
    device.attach(a_hello(probed=False))
    assert [(w.state, w.reason) for w in control.waits()] == [("probing", "probing")]


def test_of_a_class_the_device_that_is_free_soonest_counts(control: Control, farm: Farm) -> None:
    devices = {name: FakeDevice(farm, a_device(name, f"host-{name}")) for name in ("a", "b", "c")}
    for each in devices.values():
        each.attach()
    farm.drain(["a"], "eve")
    farm.lease(["b", "c"], "bob", 3600.0)
    farm.lease(["b"], "bob", 60.0)
    control.submit([replace(an_order("o1", run="me@1", device=""), device_class=devices["a"].device.device_class)])
    assert [(w.device, w.state, w.until_unix_ms) for w in control.waits()] == [("b", "leased", 61_000)]
    farm.release(["c"], "bob")
    assert control.waits() == []
