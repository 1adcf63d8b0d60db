"""A farm whose agents are of several versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.artifacts import ArtifactStore
from controller.farm import Farm
from controller.sessions import Peer
from controller.store import SqlStore
from edgefarm import __version__
from edgefarm.model import (
    FEATURES,
    DeploymentState,
    DeploymentStatus,
    Device,
    Failure,
    Hello,
    MemoryWork,
    Order,
    OrderState,
    Welcome,
)
from tests.fakes.devices import FakeClock, FakeDevice
from tests.fakes.orders import INPUTS, a_contender, a_deployment, a_device, a_hello, an_order

CLASS = a_device().device_class


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    store = SqlStore(":memory:")
    made = Farm(store, ArtifactStore(tmp_path / "artifacts"), clock=FakeClock(), wall=lambda: 1000)
    made.open_run("c", "spec", "{}", "me", {})
    yield made
    store.close()


def hello_without(device: Device, *features: str) -> Hello:
    return replace(a_hello(device), features=tuple(f for f in FEATURES if f not in features))


def memory_of_class(id: str = "m1") -> Order:
    return Order(id, "c@1", "m", CLASS, MemoryWork(a_contender(), INPUTS))


def ids(bodies: list[object]) -> list[str]:
    return [b.id for b in bodies if isinstance(b, Order)]


def state(farm: Farm, order: str) -> OrderState:
    return next(s.state for s in farm.progress("c@1").orders if s.order.id == order)


def test_an_order_goes_to_those_who_know_it(farm: Farm) -> None:
    old, new = FakeDevice(farm, a_device("old", "host-1")), FakeDevice(farm, a_device("young", "host-2"))
    old.attach(hello_without(old.device, "memory"))
    farm.submit([memory_of_class(), an_order("o1", device="old")])
    assert ids(old.say()) == ["o1"]  # `young` was never seen: alone, `old` can't do the other
    assert state(farm, "m1") is OrderState.DONE
    new.attach()
    farm.submit([memory_of_class("m2")])
    assert ids(new.say()) == ["m2"]
    assert ids(old.say()) == []


def test_an_order_waits_for_one_who_may_know_it(farm: Farm) -> None:
    old, new = FakeDevice(farm, a_device("old", "host-1")), FakeDevice(farm, a_device("young", "host-2"))
    new.attach()
    new.hang_up()
    old.attach(hello_without(old.device, "memory"))
    farm.submit([memory_of_class()])
    assert state(farm, "m1") is OrderState.QUEUED
    assert ids(new.attach()) == ["m1"]


def test_what_nobody_knows_fails_with_the_reason(farm: Farm) -> None:
    device = FakeDevice(farm, replace(a_device(), agent_version="0.0.9"))
    device.attach(hello_without(device.device, "latency"))
    farm.submit([an_order("o1", launches=(0, 1, 2))])
    (status,) = farm.progress("c@1").orders
    assert status.state is OrderState.DONE
    assert [a.index for a in status.attempts] == [0, 1, 2]
    for attempt in status.attempts:
        assert isinstance(attempt.outcome, Failure)
        assert attempt.outcome.detail.startswith("the agent of 'bench-1' (version 0.0.9) does not know 'latency': upgrade it")
    device.hang_up()
    device.restart("upgraded")
    farm.retry("c@1")
    assert ids(device.say()) == ["o1"]


def test_a_deployment_that_an_agent_cannot_activate_fails_with_the_reason(farm: Farm) -> None:
    device = FakeDevice(farm)
    device.attach(hello_without(device.device, "activate-file"))
    (ordered,) = farm.deploy([a_deployment()])
    (ended,) = farm.wait_for_deployments([ordered.id], 0.0)
    assert (ended.state, "does not know 'activate-file'" in ended.reason) == (DeploymentState.FAILED, True)
    assert device.say() == []


def test_it_fails_at_the_attach_too(farm: Farm) -> None:
    device = FakeDevice(farm)
    device.attach()
    device.hang_up()
    (ordered,) = farm.deploy([a_deployment()])
    assert device.attach(hello_without(device.device, "activate-file")) == []
    assert farm.wait_for_deployments([ordered.id], 0.0)[0].state is DeploymentState.FAILED


def test_a_state_that_only_a_newer_agent_knows_ends_nothing(farm: Farm) -> None:
    device = FakeDevice(farm)
    device.attach()
    (ordered,) = farm.deploy([a_deployment()])
    device.say(DeploymentStatus(ordered.id, "bench-1", "m", ordered.generation, DeploymentState.UNSPECIFIED))
    assert farm.wait_for_deployments([ordered.id], 0.0)[0].state is DeploymentState.ORDERED


def test_an_agent_is_told_the_controllers_version_and_what_is_wrong_with_its_own(farm: Farm) -> None:
    device = FakeDevice(farm)
    for protocol, wrong in ((1, False), (0, True)):
        device.session = farm.attach(_peer(device), a_hello(protocol=protocol), lambda: None)
        (welcome,) = device.session.take()
        assert isinstance(welcome, Welcome)
        device.token = welcome.session
        assert (welcome.version, bool(welcome.upgrade)) == (__version__, wrong)


def _peer(device: FakeDevice) -> Peer:
    return Peer(device.device.name, session=device.token) if device.token else Peer(device.device.name, device.secret)
