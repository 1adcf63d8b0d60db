"""Whose turn it is on a shared fleet: who used how much, and ten drivers of five users on four devices."""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from controller.artifacts import ArtifactStore
from controller.farm import Farm
from controller.shares import Shares
from controller.store import Share, SqlStore
from edgefarm.model import Order, OrderEnded
from tests.fakes.devices import FakeClock, FakeDevice
from tests.fakes.orders import a_device, an_attempt, an_order


def test_time_is_charged_to_whose_order_ran() -> None:
    shares = Shares()
    wanting = {"h": {"anna", "bob"}}
    shares.settle(10.0, {"h": "anna"}, wanting)
    shares.settle(13.0, {"h": "bob"}, wanting)
    shares.settle(14.0, {}, wanting)
    shares.settle(99.0, {}, wanting)
    assert shares.used == {("h", "anna"): 3.0, ("h", "bob"): 1.0}


def test_who_joins_starts_level_with_the_least_served() -> None:
    shares = Shares()
    shares.settle(0.0, {"h": "anna"}, {"h": {"anna", "bob"}})
    shares.settle(50.0, {"h": "bob"}, {"h": {"anna", "bob"}})
    shares.settle(70.0, {"h": "bob"}, {"h": {"anna", "bob", "carl"}})
    assert shares.used["h", "carl"] == 20.0


def test_waiting_elsewhere_saves_nothing_up() -> None:
    shares = Shares()
    shares.settle(0.0, {"h": "anna"}, {"h": {"anna", "bob"}})
    shares.settle(10.0, {"h": "anna"}, {"h": {"anna"}})
    shares.settle(40.0, {"h": "anna"}, {"h": {"anna", "bob"}})
    assert shares.used == {("h", "anna"): 40.0, ("h", "bob"): 40.0}


def test_a_host_that_nobody_wants_is_forgotten() -> None:
    shares = Shares()
    shares.settle(0.0, {"h": "anna", "g": "anna"}, {"h": {"anna"}, "g": {"anna"}})
    shares.settle(1000.0, {"g": "anna"}, {"g": {"anna"}})
    shares.settle(1001.0, {"h": "anna"}, {"h": {"anna", "bob"}, "g": {"anna"}})
    assert shares.used == {("h", "anna"): 0.0, ("h", "bob"): 0.0, ("g", "anna"): 1001.0}


def test_what_is_kept_is_what_competition_needs() -> None:
    shares = Shares()
    both = {"h": {"anna", "bob"}, "g": {"anna"}}
    shares.settle(10.0, {"h": "anna", "g": "anna"}, both)
    shares.settle(13.0, {"h": "bob", "g": "anna"}, both)
    assert shares.to_keep("h") == [Share("h", "anna", 3000, True), Share("h", "bob", 0, True)]
    assert shares.to_keep("g") == [], "nobody competes"
    shares.settle(14.0, {"g": "anna"}, {"g": {"anna"}})
    assert shares.to_keep("h") == []


def test_a_later_process_goes_on_where_the_earlier_one_was() -> None:
    kept = [Share("h", "anna", 30_000, True), Share("h", "bob", 20_000, True), Share("h", "carl", 5_000, False)]
    shares = Shares(kept)
    shares.settle(1000.0, {"h": "anna"}, {"h": {"anna", "bob", "carl", "dora"}})
    assert shares.used == {("h", "anna"): 30.0, ("h", "bob"): 20.0, ("h", "carl"): 20.0, ("h", "dora"): 20.0}
    shares.settle(1001.0, {"h": "bob"}, {"h": {"anna", "bob"}})
    assert shares.used["h", "anna"] == 31.0


@dataclass
class Trial:
    """One order on one device, as the device's journal has it."""

    host: str
    owner: str
    begin_s: float
    end_s: float


@dataclass
class FakeFleet:
    """Devices that begin an order as soon as they have one, whatever their neighbours do, and note when it ran."""

    farm: Farm
    clock: FakeClock
    devices: dict[str, FakeDevice]
    seconds: dict[str, float]  # owner -> length of an order
    owners: dict[str, str]  # run -> owner
    seed: int = 0
    journal: list[Trial] = field(default_factory=list)
    held: dict[str, deque[Order]] = field(default_factory=dict)
    events: list[tuple[float, str]] = field(default_factory=list)

    def take(self) -> None:
        for name, device in self.devices.items():
            assert device.session is not None
            held = self.held.setdefault(name, deque())
            idle = not held
            held.extend(b for b in device.session.take() if isinstance(b, Order))
            if idle and held:
                self.begin(name)

    def begin(self, name: str) -> None:
        order = self.held[name][0]
        owner = self.owners[order.run]
        length = self.seconds[owner] * random.Random(f"{self.seed}/{order.id}").uniform(0.5, 1.5)
        self.journal.append(Trial(self.devices[name].device.host, owner, self.clock.now, self.clock.now + length))
        heapq.heappush(self.events, (self.clock.now + length, name))

    def step(self) -> str:
        """The next order ends; returns its run."""
        self.clock.now, name = heapq.heappop(self.events)
        device, order = self.devices[name], self.held[name].popleft()
        assert device.session is not None
        self.farm.receive(device.session, an_attempt(order.id, 0, device=name))
        self.farm.receive(device.session, OrderEnded(order.id))
        if self.held[name]:
            self.begin(name)
        self.take()
        return order.run

    def used(self, since: int = 0) -> dict[str, float]:
        """Seconds by owner, of what began after the first `since` trials."""
        return {o: sum(t.end_s - t.begin_s for t in self.journal[since:] if t.owner == o) for o in set(self.owners.values())}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def farm(tmp_path: Path, clock: FakeClock) -> Iterator[Farm]:
    store = SqlStore(":memory:")
    yield Farm(store, ArtifactStore(tmp_path / "artifacts"), clock=clock, wall=lambda: 1000)
    store.close()


DRIVERS = {"anna": 1, "bob": 1, "carl": 2, "dora": 3, "emil": 3}
SECONDS = {"anna": 3.0, "bob": 12.0, "carl": 6.0, "dora": 4.0, "emil": 20.0}  # of one of their orders
HOSTS = {"a": "h1", "b": "h2", "c": "h3", "d": "h3"}  # c and d must not measure at once


@pytest.mark.parametrize(("seed", "until_s"), [(0, 400.0), *(pytest.param(n, 1200.0, marks=pytest.mark.long) for n in range(2))])
def test_ten_drivers_of_five_users_share_four_devices(farm: Farm, clock: FakeClock, seed: int, until_s: float) -> None:
    runs = {farm.open_run(f"{o}-{i}", "spec", "{}", o, {}).name: o for o, n in DRIVERS.items() for i in range(n)}
    assert len(runs) == 10
    devices = {name: FakeDevice(farm, a_device(name, host)) for name, host in HOSTS.items()}
    fleet = FakeFleet(farm, clock, devices, SECONDS, runs, seed)
    for device in devices.values():
        device.attach()
    ordered: Counter[str] = Counter()

    def order(run: str) -> None:
        """One more of a driver, for any device of the class."""
        ordered[run] += 1
        farm.submit([an_order(f"{run}/{ordered[run]}", run, "", (0,), devices["a"].device.device_class)])

    for run in list(runs) * 4:  # every driver keeps four orders open
        order(run)
    fleet.take()
    while clock.now < until_s:
        order(fleet.step())
        fleet.take()
    used = fleet.used()
    fair = sum(used.values()) / len(DRIVERS)
    assert {o: round(used[o] / fair, 2) for o in DRIVERS if not 0.8 <= used[o] / fair <= 1.2} == {}
    for host in set(HOSTS.values()):
        trials = sorted((t for t in fleet.journal if t.host == host), key=lambda t: t.begin_s)
        assert len(trials) > 10
        assert [(a, b) for a, b in pairwise(trials) if b.begin_s < a.end_s] == [], "two at once in one measure domain"


def test_a_restart_of_the_controller_forgives_nothing(tmp_path: Path, clock: FakeClock) -> None:
    """Bob had a device leased while anna waited: she comes first now, also where the controller has been started again."""
    store = SqlStore(tmp_path / "store.db")

    def started() -> FakeFleet:
        farm = Farm(store, ArtifactStore(tmp_path / "artifacts"), clock=clock, wall=lambda: 1000)
        return FakeFleet(farm, clock, {"a": FakeDevice(farm, a_device("a", "h1"))}, {"anna": 10.0, "bob": 10.0}, runs)

    runs = {store.open_run(o, "spec", "{}", o, {}, 1).name: o for o in ("anna", "bob")}
    store.save_shares("h0", [Share("h0", "anna", 1, True)])
    fleet = started()
    fleet.devices["a"].attach()
    fleet.farm.lease(["a"], "bob", 1e6)
    for owner in ("anna", "bob"):
        fleet.farm.submit([an_order(f"{owner}@1/{n}", f"{owner}@1", "a", (0,)) for n in range(60)])
    fleet.take()
    for _ in range(20):
        fleet.step()
    assert {t.owner for t in fleet.journal} == {"bob"}
    clock.now = 5.0  # of another boot, perhaps
    fleet = started()
    fleet.farm.release(["a"], "bob")
    fleet.held["a"] = deque(o for o in fleet.devices["a"].attach() if isinstance(o, Order))
    assert len(fleet.held["a"]) == 2
    fleet.begin("a")
    for _ in range(15):
        fleet.step()
    assert [t.owner for t in fleet.journal[:15]] == ["bob"] * 2 + ["anna"] * 13
    assert {s.host for s in store.shares()} == {"h1"}, "the one of an earlier boot is forgotten"
    for run in runs:
        fleet.farm.cancel_run(run)
    assert store.shares() == []
    store.close()


def test_a_user_who_comes_late_is_served_soon_and_then_fairly(farm: Farm, clock: FakeClock) -> None:
    runs = {farm.open_run(o, "spec", "{}", o, {}).name: o for o in ("anna", "bob")}
    fleet = FakeFleet(farm, clock, {"a": FakeDevice(farm, a_device("a", "h1"))}, {"anna": 10.0, "bob": 10.0}, runs)
    fleet.devices["a"].attach()
    farm.submit([an_order(f"anna@1/{n}", "anna@1", "a", (0,)) for n in range(60)])
    fleet.take()
    for _ in range(20):
        fleet.step()
    farm.submit([an_order(f"bob@1/{n}", "bob@1", "a", (0,)) for n in range(60)])
    began = len(fleet.journal)
    for _ in range(30):
        fleet.step()
    used = fleet.used(began)
    assert 0.8 < used["bob"] / used["anna"] < 1.25, used
    assert "bob" in [t.owner for t in fleet.journal[began : began + 2]]
