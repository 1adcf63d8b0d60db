"""What every store must do; each test runs over every backend."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from controller.store import Share, SqlStore, Store
from controller.store import engine as engine_module
from controller.store.tables import HEAD, metadata
from edgefarm.errors import NotFound, StorageError, UserError
from edgefarm.model import CANCELLED, DeploymentState, DeploymentStatus, FailureKind, Hold, HoldKind, OrderState
from tests.fakes.orders import (
    a_candidate,
    a_deployment,
    a_device,
    a_failed_attempt,
    a_memory_attempt,
    a_memory_order,
    an_attempt,
    an_order,
)

OPEN = (OrderState.QUEUED, OrderState.SENT)


def _in_file(folder: Path) -> SqlStore:
    return SqlStore(folder / "state" / "store.db")


def _in_memory(_: Path) -> SqlStore:
    return SqlStore(":memory:")


@pytest.fixture(params=[_in_file, _in_memory], ids=["sqlite-file", "sqlite-memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened: Callable[[Path], SqlStore] = request.param
    made = opened(tmp_path)
    yield made
    made.close()


@pytest.fixture
def with_run(store: Store) -> Store:
    store.open_run("c", "spec-1", "{}", "me", {}, 1)
    return store


def test_a_run_is_opened_again_until_its_spec_changes(store: Store) -> None:
    first = store.open_run("kitchen", "spec-1", "{}", "me", {"a": "b"}, 11)
    assert (first.name, first.number, first.labels, first.started_unix_ms) == ("kitchen@1", 1, {"a": "b"}, 11)
    assert store.open_run("kitchen", "spec-1", "{}", "you", {"a": "b"}, 12) == first
    first = replace(first, labels={"a": "c", "d": ""})
    assert store.open_run("kitchen", "spec-1", "{}", "you", {"a": "c", "d": ""}, 12) == first  # labels make no other run
    assert store.runs() == [first]
    second = store.open_run("kitchen", "spec-2", "{}", "me", {}, 13)
    third = store.open_run("kitchen", "spec-1", "{}", "me", {}, 14)  # an old spec is a new run again
    other = store.open_run("garden", "spec-1", "{}", "me", {}, 15)
    assert [r.name for r in store.runs("kitchen")] == ["kitchen@1", "kitchen@2", "kitchen@3"]
    assert store.runs() == [first, second, third, other]


def test_a_run_is_updated_but_keeps_its_identity(store: Store) -> None:
    run = store.open_run("c", "spec-1", "{}", "me", {}, 1)
    store.update_run(replace(run, state="done", exit_code=0, report="{}", finished_unix_ms=9, spec_digest="other", owner="you"))
    assert store.runs() == [replace(run, state="done", exit_code=0, report="{}", finished_unix_ms=9)]
    with pytest.raises(NotFound, match="no run 'x@1'"):
        store.update_run(replace(run, name="x@1"))


def test_one_run_is_found_by_its_name(with_run: Store) -> None:
    assert with_run.run("c@1") == with_run.runs()[0]
    assert with_run.run("c@2") is None


def test_a_cancelled_run_is_not_opened_again(with_run: Store) -> None:
    with_run.update_run(replace(with_run.runs()[0], state=CANCELLED))
    assert with_run.open_run("c", "spec-1", "{}", "me", {}, 2).name == "c@2"


def test_there_is_one_hold_of_a_kind_on_a_name(store: Store) -> None:
    lease, drain = Hold(HoldKind.LEASE, "a", "me", 5), Hold(HoldKind.DRAIN, "a", "you")
    for hold in (Hold(HoldKind.LEASE, "a", "you", 1), lease, drain):
        store.save_hold(hold)
    assert store.holds() == [drain, lease]
    store.delete_hold(HoldKind.LEASE, "a")
    store.delete_hold(HoldKind.LEASE, "unknown")
    assert store.holds() == [drain]


def test_shares_of_a_host_are_replaced_as_one(store: Store) -> None:
    first = [Share("h", "anna", 1500, True), Share("h", "bob", 2**40, False)]
    store.save_shares("h", first)
    store.save_shares("g", [Share("g", "anna", 1, True), Share("g", "eve", 2, True)])
    assert store.shares()[2:] == first
    store.save_shares("h", [Share("h", "carl", 3, True)])
    store.save_shares("g", [])
    assert store.shares() == [Share("h", "carl", 3, True)]


def test_devices_are_replaced_by_name(store: Store) -> None:
    store.save_device(a_device("b"), 1)
    store.save_device(a_device("a"), 2)
    store.save_device(a_device("b", host="other"), 3)
    assert store.devices() == [(a_device("a"), 2), (a_device("b", host="other"), 3)]


def test_orders_are_queued_once_in_order(with_run: Store) -> None:
    with_run.add_orders([an_order("o2"), an_order("o1")])
    with_run.mark("o2", OrderState.DONE, from_states=OPEN)
    with_run.add_orders([an_order("o2"), an_order("o3", device="", device_class="k")])
    queue = with_run.queue()
    assert [(e.id, e.device, e.device_class, e.state) for e in queue] == [
        ("o1", "bench-1", "", OrderState.QUEUED),
        ("o3", "", "k", OrderState.QUEUED),
    ]
    assert queue[0].sequence < queue[1].sequence


def test_an_order_of_an_unknown_run_queues_nothing(with_run: Store) -> None:
    with pytest.raises(NotFound, match="no run 'x@1'"):
        with_run.add_orders([an_order("o1"), an_order("o2", run="x@1")])
    assert with_run.queue() == []


def test_marking_follows_the_state(with_run: Store) -> None:
    with_run.add_orders([an_order()])
    assert with_run.mark("o1", OrderState.SENT, "bench-1", from_states=OPEN)
    assert with_run.queue()[0].sent_to == "bench-1"
    assert with_run.mark("o1", OrderState.CANCELLED, from_states=OPEN)
    assert not with_run.mark("o1", OrderState.DONE, from_states=OPEN)
    assert not with_run.mark("unknown", OrderState.DONE, from_states=OPEN)
    stored = with_run.order("o1")
    assert stored is not None
    assert (stored.state, stored.sent_to) == (OrderState.CANCELLED, "bench-1")
    assert with_run.order("unknown") is None


def test_an_attempt_takes_effect_once(with_run: Store) -> None:
    with_run.add_orders([an_order()])
    with_run.mark("o1", OrderState.SENT, "bench-1", from_states=OPEN)
    assert not with_run.queue()[0].touched
    assert with_run.add_attempt(an_attempt(index=1))
    assert with_run.queue()[0].touched
    assert not with_run.add_attempt(an_attempt(index=1, mean_ns=99.0))
    assert with_run.add_attempt(an_attempt(index=0), OrderState.DONE)
    stored = with_run.order("o1")
    assert stored is not None
    assert (stored.state, stored.done) == (OrderState.DONE, frozenset({0, 1}))
    assert with_run.changes("c@1", -1).attempts == (an_attempt(index=0), an_attempt(index=1))
    with pytest.raises(NotFound, match="no order 'unknown'"):
        with_run.add_attempt(an_attempt("unknown"))


def test_sending_again_forgets_what_arrived_before(with_run: Store) -> None:
    with_run.add_orders([an_order()])
    with_run.mark("o1", OrderState.SENT, "bench-1", from_states=OPEN)
    with_run.add_attempt(an_attempt())
    with_run.mark("o1", OrderState.SENT, "bench-1", from_states=OPEN)
    assert not with_run.queue()[0].touched
    assert (with_run.add_loss("o1"), with_run.add_loss("o1")) == (1, 2)
    assert with_run.queue()[0].losses == 2


def test_changes_tell_only_what_is_newer(with_run: Store) -> None:
    assert with_run.revision("c@1") == 0
    with_run.add_orders([an_order("o1"), an_order("o2")])
    first = with_run.changes("c@1", -1)
    assert [c.order.id for c in first.orders] == ["o1", "o2"]
    assert with_run.changes("c@1", first.revision).orders == ()
    with_run.add_attempt(an_attempt("o2"))
    second = with_run.changes("c@1", first.revision)
    assert (second.orders, second.attempts) == ((), (an_attempt("o2"),))
    with_run.mark("o1", OrderState.DONE, from_states=OPEN)
    third = with_run.changes("c@1", second.revision)
    assert ([c.order.id for c in third.orders], third.attempts) == (["o1"], ())
    assert first.revision < second.revision < third.revision
    for call in (with_run.revision, lambda run: with_run.changes(run, -1)):
        with pytest.raises(NotFound):
            call("x@1")


def test_retry_sets_failures_aside_and_keeps_what_was_measured(with_run: Store) -> None:
    with_run.add_orders([an_order("o1", launches=(0, 1)), an_order("o2"), a_memory_order("m1"), a_memory_order("m2")])
    with_run.add_attempt(an_attempt("o1", 0))
    with_run.add_attempt(a_failed_attempt("o1", 1), OrderState.DONE)
    with_run.add_attempt(a_failed_attempt("o2", 0, FailureKind.DEVICE_LOST), OrderState.QUARANTINED)
    with_run.add_loss("o2")
    with_run.add_attempt(a_memory_attempt("m1"), OrderState.DONE)
    with_run.mark("m2", OrderState.CANCELLED, from_states=OPEN)
    assert with_run.retry("c@1") == ["o1", "o2"]
    assert [(e.id, e.losses) for e in with_run.queue()] == [("o1", 0), ("o2", 0)]
    assert with_run.changes("c@1", -1).attempts == (an_attempt("o1", 0), a_memory_attempt("m1"))
    # Its device had the old failure still in its journal: known, and not counted again.
    assert not with_run.add_attempt(a_failed_attempt("o1", 1))
    assert with_run.add_attempt(an_attempt("o1", 1), OrderState.DONE)
    assert with_run.retry("c@1") == []


def _ordered(deployment_id: str, generation: int, state: DeploymentState = DeploymentState.ORDERED) -> DeploymentStatus:
    return DeploymentStatus(deployment_id, "bench-1", "m", generation, state)


def test_the_id_of_a_deployment_takes_effect_once(store: Store) -> None:
    store.save_device(a_device(), 1)
    store.add_deployment(a_deployment(generation=1, id="d1"), _ordered("d1", 1))
    with pytest.raises(UserError, match="deployment 'd1' exists already"):
        store.add_deployment(a_deployment(generation=2, id="d1"), _ordered("d1", 2))
    (kept,) = store.history("bench-1")
    assert kept.status.generation == 1


def test_generations_only_grow_and_supersede(store: Store) -> None:
    store.save_device(a_device(), 1)
    store.add_deployment(a_deployment(generation=1, id="d1"), _ordered("d1", 1))
    store.add_deployment(a_deployment(generation=3, id="d3"), _ordered("d3", 3))
    with pytest.raises(UserError, match="generation 3 is not above 3"):
        store.add_deployment(a_deployment(generation=3, id="other"), _ordered("other", 3))
    assert [(s.status.id, s.status.state) for s in store.history("bench-1", "m")] == [
        ("d1", DeploymentState.SUPERSEDED),
        ("d3", DeploymentState.ORDERED),
    ]
    assert [s.status.id for s in store.newest_deployments()] == ["d3"]
    assert store.newest_deployments(model="other") == store.newest_deployments(device="other") == []


def test_a_commit_supersedes_or_rolls_back_the_one_before(store: Store) -> None:
    store.save_device(a_device(), 1)
    for generation, undoes in ((1, ""), (2, ""), (3, "d2")):
        identity = f"d{generation}"
        store.add_deployment(a_deployment(generation=generation, id=identity), _ordered(identity, generation), undoes)
        store.save_status(_ordered(identity, generation, DeploymentState.COMMITTED))
    states = [(s.status.state, s.committed) for s in store.history("bench-1")]
    assert states == [(DeploymentState.SUPERSEDED, True), (DeploymentState.ROLLED_BACK, True), (DeploymentState.COMMITTED, True)]
    assert [s.state for s in store.statuses(["d3", "d1", "unknown"])] == [DeploymentState.SUPERSEDED, DeploymentState.COMMITTED]


def test_a_deployment_made_elsewhere_is_adopted(store: Store) -> None:
    store.save_device(a_device(), 1)
    store.save_status(_ordered("foreign", 7, DeploymentState.COMMITTED))
    (stored,) = store.newest_deployments()
    assert (stored.deployment, stored.status.generation, stored.committed) == (None, 7, True)
    store.add_deployment(a_deployment(generation=8, id="d8"), _ordered("d8", 8))
    (stored,) = store.newest_deployments("bench-1", "m")
    assert stored.deployment == a_deployment(generation=8, id="d8")
    assert stored.candidate_key == a_candidate().key


def test_it_counts_what_there_is(with_run: Store) -> None:
    with_run.open_run("d", "spec", "{}", "me", {}, 1)
    with_run.add_orders([an_order("o1"), an_order("o2"), an_order("o3")])
    with_run.mark("o2", OrderState.SENT, "bench-1", from_states=(OrderState.QUEUED,))
    for name in ("bench-1", "bench-2"):
        with_run.save_device(a_device(name), 1)
    with_run.add_deployment(a_deployment(generation=1, id="one"), _ordered("one", 1))
    with_run.save_status(_ordered("one", 1, DeploymentState.COMMITTED))
    with_run.add_deployment(a_deployment(generation=2, id="two"), _ordered("two", 2))
    other = a_deployment("bench-2", generation=1, id="three")
    with_run.add_deployment(other, replace(_ordered("three", 1), device="bench-2"))
    counts = with_run.counts()
    assert counts.orders == {"queued": 2, "sent": 1}
    assert counts.deployments == {"ordered": 2}  # of each device and model, the newest
    assert counts.runs == ("c@1", "d@1")


def test_threads_write_at_the_same_time(with_run: Store) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(5):
                order = an_order(f"o{number}-{step}", launches=(0,))
                with_run.add_orders([order])
                with_run.add_attempt(an_attempt(order.id), OrderState.DONE)
                with_run.changes("c@1", -1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    changes = with_run.changes("c@1", -1)
    assert len(changes.orders) == len(changes.attempts) == 30
    assert changes.revision == 60


def test_a_file_is_shared_and_read_again(tmp_path: Path) -> None:
    first = _in_file(tmp_path)
    first.open_run("c", "spec", "{}", "me", {}, 1)
    second = _in_file(tmp_path)
    second.add_orders([an_order()])
    assert [e.id for e in first.queue()] == ["o1"]
    first.close()
    second.close()
    again = _in_file(tmp_path)
    assert [r.name for r in again.runs()] == ["c@1"]
    again.close()


def test_the_migrations_make_exactly_the_tables(tmp_path: Path) -> None:
    _in_file(tmp_path).close()
    engine = create_engine(f"sqlite:///{tmp_path}/state/store.db")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == HEAD
    engine.dispose()


def test_a_newer_version_s_store_is_refused(tmp_path: Path) -> None:
    _in_file(tmp_path).close()
    engine = create_engine(f"sqlite:///{tmp_path}/state/store.db")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(UserError, match=r"store\.db: its schema 9999 was written by a newer version.*upgrade edgefarm"):
        _in_file(tmp_path)


def test_what_fails_says_where_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(StorageError, match=r"folder\.db: unable to open database file: make its folder writable"):
        SqlStore(tmp_path / "folder.db")
    (tmp_path / "text.db").write_text("this is no database, however long one looks at it" * 100)
    with pytest.raises(StorageError, match=r"text\.db: .*not a database: the file is damaged"):
        SqlStore(tmp_path / "text.db")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another place with --state"):
        SqlStore(tmp_path / "file" / "store.db")


def test_a_database_that_another_process_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _in_file(tmp_path).close()
    monkeypatch.setattr(engine_module, "BUSY_TIMEOUT_S", 0.05)
    holder = sqlite3.connect(tmp_path / "state" / "store.db")
    holder.execute("BEGIN IMMEDIATE")
    store = _in_file(tmp_path)
    with pytest.raises(StorageError, match="database is locked: another process holds it"):
        store.open_run("c", "spec", "{}", "me", {}, 1)
    holder.rollback()
    holder.close()
    assert store.open_run("c", "spec", "{}", "me", {}, 1).name == "c@1"
    store.close()


def test_a_full_and_a_read_only_database(tmp_path: Path) -> None:
    store = _in_file(tmp_path)
    store.open_run("c", "spec", "{}", "me", {}, 1)
    for pragma, message in (("max_page_count = 1", "database or disk is full: free some space"), ("query_only = 1", "readonly")):
        with store._engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA {pragma}")
        with pytest.raises(StorageError, match=message):
            store.open_run("d", "spec", "x" * 100_000, "me", {}, 1)
    assert [r.name for r in store.runs()] == ["c@1"]
    store.close()
