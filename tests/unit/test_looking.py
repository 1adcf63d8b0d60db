"""What one who only looks is told: what the store knows, and nothing that only a driver could know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from controller.looking import Look
from controller.store import SqlStore
from edgefarm.errors import UserError
from edgefarm.model import DeploymentState, DeploymentStatus, OrderState
from tests.fakes.orders import a_deployment, a_device, an_order


@pytest.fixture
def store() -> Iterator[SqlStore]:
    made = SqlStore(":memory:")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("state", "undriven"),
    [("open", "waiting_for_driver"), ("measuring", "waiting_for_driver"), ("done", "done"), ("done-select", "done-select")],
)
def test_a_run_that_nobody_drives_waits_unless_it_has_ended(store: SqlStore, state: str, undriven: str) -> None:
    run = replace(store.open_run("c", "spec", "{}", "me", {}, 1), state=state)
    store.update_run(run)
    assert [r.state for r in Look(store, "17").runs()] == [state]
    assert [r.state for r in Look(store, "").runs("c")] == [undriven]
    assert store.runs() == [run], "looking changes nothing"


def test_devices_are_off_while_nobody_drives_them(store: SqlStore) -> None:
    for name in ("a", "b"):
        store.save_device(a_device(name), 5)
    store.open_run("c", "spec", "{}", "me", {}, 1)
    store.add_orders([an_order("o1")])
    store.mark("o1", OrderState.SENT, "b", from_states=(OrderState.QUEUED,))
    off = Look(store, "").devices()
    assert [(s.device, s.state, s.last_seen_unix_ms) for s in off] == [(a_device("a"), "off", 5), (a_device("b"), "off", 5)]
    assert "only while a command drives" in off[0].reason
    a, b = Look(store, "17").devices()
    assert (a.state, b.state) == ("in_use", "in_use")
    assert "process 17" in a.reason
    assert "given 0 orders" in a.reason
    assert "given 1 orders" in b.reason
    assert [s.order.id for s in Look(store, "").orders("c@1")] == ["o1"]


def test_whether_there_is_a_way_back(store: SqlStore) -> None:
    store.save_device(a_device("bench-1"), 5)
    look = Look(store, "")
    with pytest.raises(UserError, match="nothing is deployed"):
        look.check_way_back("m", ["bench-1"])
    for generation, payload in ((1, b"a model"), (2, b"another")):
        deployment = a_deployment(payload=payload, generation=generation, id=f"d{generation}")
        status = DeploymentStatus(deployment.id, "bench-1", "m", generation, DeploymentState.ORDERED)
        store.add_deployment(deployment, status)
        store.save_status(replace(status, state=DeploymentState.COMMITTED))
        if generation == 1:
            with pytest.raises(UserError, match="no earlier deployment"):
                look.check_way_back("m", ["bench-1"])
    look.check_way_back("m", ["bench-1"])
    with pytest.raises(UserError, match="device 'other': nothing is deployed"):
        look.check_way_back("m", ["bench-1", "other"])
