"""What one who only looks is told: what the store knows, and nothing that only a driver could know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.artifacts import ArtifactStore
from controller.looking import Look
from controller.report.kept import keep
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
    assert [r.state for r in Look(store, Path("artifacts"), "17").runs()] == [state]
    assert [r.state for r in Look(store, Path("artifacts"), "").runs("c")] == [undriven]
    assert store.runs() == [run], "looking changes nothing"


def test_devices_are_off_while_nobody_drives_them(store: SqlStore) -> None:
    for name in ("a", "b"):
        store.save_device(a_device(name), 5)
    store.open_run("c", "spec", "{}", "me", {}, 1)
    store.add_orders([an_order("o1")])
    store.mark("o1", OrderState.SENT, "b", from_states=(OrderState.QUEUED,))
    off = Look(store, Path("artifacts"), "").devices()
    assert [(s.device, s.state, s.last_seen_unix_ms) for s in off] == [(a_device("a"), "off", 5), (a_device("b"), "off", 5)]
    assert "only while a command drives" in off[0].reason
    a, b = Look(store, Path("artifacts"), "17").devices()
    assert (a.state, b.state) == ("in_use", "in_use")
    assert "process 17" in a.reason
    assert "given 0 orders" in a.reason
    assert "given 1 orders" in b.reason
    assert [s.order.id for s in Look(store, Path("artifacts"), "").orders("c@1")] == ["o1"]


def test_whether_there_is_a_way_back(store: SqlStore) -> None:
    store.save_device(a_device("bench-1"), 5)
    look = Look(store, Path("artifacts"), "")
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


def test_a_report_is_read_where_the_run_says_it_is(store: SqlStore, tmp_path: Path) -> None:
    look = Look(store, tmp_path / "artifacts", "")
    run = store.open_run("c", "spec", "{}", "me", {}, 1)
    assert (run.has_report, look.report(run)) == (False, {})
    earlier = replace(run, report='{"schema": 1}')
    assert (earlier.has_report, look.report(earlier)) == (True, {"schema": 1})
    now = replace(run, report_digest=keep({"schema": 1, "run": "c@1"}, ArtifactStore(tmp_path / "artifacts").put))
    assert (now.has_report, look.report(now)) == (True, {"schema": 1, "run": "c@1"})
