"""Orders that may begin only at some time of the day, and only on some devices of their class; in one process and over gRPC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from controller.artifacts import ArtifactStore
from controller.control import Control
from controller.farm import Farm
from controller.store import SqlStore
from edgefarm.errors import UserError
from edgefarm.model import FEATURES, Ack, Failure, Heartbeat, Order, OrderEnded, OrderState, Wait
from edgefarm.windows import DAY_S
from tests.fakes.devices import FakeClock, FakeDevice
from tests.fakes.orders import a_device, a_hello, an_attempt, an_order

NIGHT = "22:00-05:00"
TEN_PM = 22 * 3600


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    made = SqlStore(str(tmp_path / "store.db"))
    yield made
    made.close()


def a_farm(store: SqlStore, folder: Path, clock: FakeClock) -> Farm:
    made = Farm(store, ArtifactStore(folder / "artifacts"), heartbeat_s=1e9, clock=clock, wall=lambda: round(clock.now * 1000))
    for owner in ("me", "bob"):
        made.open_run(owner, "spec", "{}", owner, {})
    return made


@pytest.fixture
def farm(store: SqlStore, tmp_path: Path, clock: FakeClock) -> Farm:
    return a_farm(store, tmp_path, clock)


def at_night(id: str = "o1", **more: object) -> Order:
    return replace(an_order(id, run="me@1"), window=NIGHT, **more)  # type: ignore[arg-type]


def ids(bodies: Sequence[object]) -> list[str]:
    return [b.id for b in bodies if isinstance(b, Order)]


def state(control: Control, order: str = "o1") -> OrderState:
    return next(s.state for s in control.progress("me@1").orders if s.order.id == order)


def test_an_order_waits_for_its_window_and_others_do_not(control: Control, farm: Farm, device: FakeDevice, clock: FakeClock) -> None:
    device.say(Heartbeat(local_s=TEN_PM - 100))
    control.submit([at_night(), an_order("o2", run="bob@1", launches=(0,))])
    assert ids(device.say()) == ["o2"]
    reason = "its window 22:00-05:00 is closed: it is 21:58 there"
    assert control.waits("me@1") == [Wait("me@1", "bench-1", 1, "window", until_unix_ms=100_000, reason=reason)]
    clock.now = 99.0
    farm.tick()
    assert ids(device.say()) == []
    clock.now = 100.0
    farm.tick()
    assert ids(device.say()) == ["o1"]
    assert control.waits("me@1") == []


def test_who_is_kept_out_by_the_time_of_day_saves_nothing_up(farm: Farm, device: FakeDevice, clock: FakeClock) -> None:
    """Else an order that waited all day would come before all others when its window opens, for as long as they worked."""
    device.say(Heartbeat(local_s=TEN_PM - 1000))
    farm.submit([at_night()])
    farm.submit([an_order(f"b{i}", run="bob@1", launches=(0,)) for i in range(9)])
    for i in range(5):
        clock.now += 150.0
        device.say(an_attempt(f"b{i}", 0), OrderEnded(f"b{i}"))
    clock.now = 1000.0
    farm.tick()
    shares = {s.owner: s.used_ms for s in farm.store.shares()}
    assert shares["me"] == shares["bob"] > 0


def test_the_devices_clock_counts_and_it_may_change(control: Control, farm: Farm, device: FakeDevice, clock: FakeClock) -> None:
    device.say(Heartbeat(local_s=TEN_PM - 7200))
    control.submit([at_night()])
    clock.now = 10.0
    assert ids(device.say(Heartbeat(local_s=TEN_PM + 10))) == ["o1"], "its clock was set meanwhile"
    assert [w.state for w in control.waits()] == []


def test_an_order_that_a_device_gives_back_waits_and_the_device_takes_others(
    control: Control, farm: Farm, device: FakeDevice, clock: FakeClock
) -> None:
    device.say(Heartbeat(local_s=5 * 3600 - 1))
    control.submit([at_night()])
    assert ids(device.say(an_attempt("o1", 0))) == ["o1"]
    clock.now = 2.0  # the window closes after the first launch; of the two clocks the device's is ahead
    answers = device.say(OrderEnded("o1", cancelled=True, local_s=5 * 3600 + 1))
    assert ids(answers) == []
    assert state(control) is OrderState.QUEUED
    control.submit([an_order("o2", run="bob@1", launches=(0,))])
    assert ids(device.say()) == ["o2"], "it does not drain"
    clock.now += 17 * 3600
    farm.tick()
    sent = [b for b in device.say() if isinstance(b, Order)]
    assert [(o.id, o.work.launches) for o in sent] == [("o1", (1, 2))]  # type: ignore[union-attr]


def test_a_device_whose_clock_is_behind_gets_it_again_when_it_is_time_there(
    control: Control, farm: Farm, device: FakeDevice, clock: FakeClock
) -> None:
    device.say(Heartbeat(local_s=TEN_PM))
    control.submit([at_night()])
    assert ids(device.say()) == ["o1"]
    assert ids(device.say(OrderEnded("o1", cancelled=True, local_s=TEN_PM - 1))) == []
    clock.now = 1.0
    farm.tick()
    assert ids(device.say()) == ["o1"]


def test_a_device_without_a_clock_is_told_of(control: Control, farm: Farm, device: FakeDevice) -> None:
    control.submit([at_night()])
    assert control.waits() == [], "it has not said yet how late it is"
    assert ids(device.say(Heartbeat())) == []
    (wait,) = control.waits()
    assert (wait.state, wait.until_unix_ms) == ("window", 0)
    assert "it does not know the time of day" in wait.reason
    assert "set its clock (NTP)" in wait.reason


def test_a_device_that_is_away_by_day_is_expected_at_night(control: Control, farm: Farm, device: FakeDevice, clock: FakeClock) -> None:
    device.say(Heartbeat(local_s=TEN_PM - 3600))
    control.submit([at_night()])
    device.hang_up()
    assert [(w.state, w.until_unix_ms) for w in control.waits()] == [("window", 3_600_000)]
    clock.now = 3600.0
    farm.tick()
    assert [w.state for w in control.waits()] == ["lost"]


def test_windows_outlive_the_controller(store: SqlStore, tmp_path: Path, clock: FakeClock) -> None:
    a_farm(store, tmp_path, clock).submit([at_night(only_on=("bench-1",))])
    again = FakeDevice(a_farm(store, tmp_path, clock))
    assert ids(again.attach()) == []
    assert ids(again.say(Heartbeat(local_s=DAY_S // 2))) == []
    assert ids(again.say(Heartbeat(local_s=TEN_PM))) == ["o1"]


def test_only_some_devices_of_the_class_take_it(control: Control, farm: Farm) -> None:
    one, two = FakeDevice(farm, a_device("a", "h1")), FakeDevice(farm, a_device("b", "h2"))
    one.attach()
    two.attach()
    order = replace(an_order("o1", run="me@1", device="", device_class=two.device.device_class), only_on=("b", "c"))
    control.submit([order, replace(order, id="o2", only_on=("c",))])
    assert ids(one.say()) == []
    assert ids(two.say()) == ["o1"]
    assert [b for b in two.say(an_attempt("o1", 0, device="b")) if isinstance(b, Ack)] == [Ack("o1", 0)]
    assert [(w.device, w.state) for w in control.waits()] == [], "nobody is there who could"


def test_an_agent_that_keeps_no_windows_is_not_asked_to(control: Control, farm: Farm, device: FakeDevice) -> None:
    old = tuple(f for f in FEATURES if f != "window")
    device.restart("i2", replace(a_hello(instance="i2"), features=old))
    control.submit([at_night(), an_order("o2", run="me@1", launches=(0,))])
    assert ids(device.say(Heartbeat())) == ["o2"]
    (failed,) = [s for s in control.progress("me@1").orders if s.order.id == "o1"]
    outcomes = [a.outcome for a in failed.attempts]
    assert all(isinstance(o, Failure) and "does not know 'window'" in o.detail for o in outcomes)
    assert len(outcomes) == 3


def test_a_window_that_cannot_be_read_is_refused(control: Control, farm: Farm) -> None:
    with pytest.raises(UserError, match="an order's window: 'noon' is no part of the day"):
        control.submit([replace(an_order("o1", run="me@1"), window="noon")])
    assert control.progress("me@1").orders == ()
