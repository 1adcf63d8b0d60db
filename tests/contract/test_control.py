"""What every `Control` must do, in one process and over gRPC, and what devices must see of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from controller.artifacts import ArtifactStore
from controller.control import Control
from controller.farm import Farm
from controller.sessions import Peer
from controller.store import SqlStore
from edgefarm.digest import digest_bytes
from edgefarm.errors import (
    Busy,
    Denied,
    EdgefarmError,
    NotFound,
    ProtocolError,
    QuotaExceeded,
    RunCancelled,
    StorageError,
    Unreachable,
    UserError,
)
from edgefarm.model import (
    Ack,
    Attempt,
    AttemptId,
    Cancel,
    Deployment,
    DeploymentState,
    DeploymentStatus,
    Failure,
    FailureKind,
    Heartbeat,
    HoldKind,
    LatencyWork,
    Order,
    OrderEnded,
    OrderState,
    Probed,
)
from tests.fakes.devices import FakeClock, FakeDevice
from tests.fakes.orders import (
    INPUTS,
    MODEL_BYTES,
    a_deployment,
    a_device,
    a_failed_attempt,
    a_hello,
    a_memory_order,
    an_accuracy_order,
    an_attempt,
    an_order,
)


@pytest.fixture
def store() -> Iterator[SqlStore]:
    made = SqlStore(":memory:")
    yield made
    made.close()


@pytest.fixture
def farm(store: SqlStore, tmp_path: Path, clock: FakeClock) -> Farm:
    return _farm(store, tmp_path, clock)


def _farm(store: SqlStore, folder: Path, clock: FakeClock) -> Farm:
    made = Farm(store, ArtifactStore(folder / "artifacts"), heartbeat_s=5.0, lost_after_s=30.0, clock=clock, wall=lambda: 1000)
    made.open_run("c", "spec", "{}", "me", {})
    return made


@pytest.fixture
def device(farm: Farm) -> FakeDevice:
    return FakeDevice(farm)


def ids(bodies: Sequence[object]) -> list[str]:
    return [b.id for b in bodies if isinstance(b, Order)]


def launches(bodies: Sequence[object]) -> dict[str, tuple[int, ...]]:
    return {b.id: b.work.launches for b in bodies if isinstance(b, Order) and isinstance(b.work, LatencyWork)}


def states(control: Control) -> dict[str, OrderState]:
    return {s.order.id: s.state for s in control.progress("c@1").orders}


# Orders and results


def test_orders_go_out_and_results_come_back(control: Control, device: FakeDevice) -> None:
    assert device.attach() == []
    control.submit([an_order("o1"), an_order("o2"), an_order("o3")])
    control.submit([an_order("o1")])
    assert device.session is not None
    assert ids(device.session.take()) == ["o1", "o2"]  # one runs, one is prefetched
    answers = device.say(an_attempt("o1", 0), an_attempt("o1", 1), an_attempt("o1", 2), OrderEnded("o1"))
    assert answers[:3] == [Ack("o1", 0), Ack("o1", 1), Ack("o1", 2)]
    assert ids(answers) == ["o3"]
    first = control.progress("c@1").orders[0]
    assert (first.state, first.device) == (OrderState.DONE, "bench-1")
    assert first.attempts == tuple(an_attempt("o1", i) for i in range(3))


def test_a_repeated_attempt_counts_once_and_is_acknowledged_again(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1")])
    assert Ack("o1", 0) in device.say(an_attempt("o1", 0))
    assert device.say(an_attempt("o1", 0, mean_ns=9.0)) == [Ack("o1", 0)]
    assert control.progress("c@1").orders[0].attempts == (an_attempt("o1", 0),)


@pytest.mark.parametrize("attempt", [an_attempt("unknown"), an_attempt("o1", 77)])
def test_an_attempt_that_nobody_asked_for_is_acknowledged_and_forgotten(control: Control, device: FakeDevice, attempt: Attempt) -> None:
    device.attach()
    control.submit([an_order("o1")])
    assert Ack(attempt.order, attempt.index) in device.say(attempt)
    assert control.progress("c@1").orders[0].attempts == ()


def test_a_device_speaks_for_itself_only(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1")])
    device.say(an_attempt("o1", 0, device="another"))
    assert control.progress("c@1").orders[0].attempts[0].device == "bench-1"


def test_an_order_may_end_with_less_than_it_asked_for(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1")])
    device.say(a_failed_attempt("o1", 0), OrderEnded("o1"))
    assert states(control) == {"o1": OrderState.DONE}


def test_progress_waits_for_news_only(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1")])
    seen = control.progress("c@1")
    assert control.progress("c@1", seen.revision, 0.01) == seen
    news: list[int] = []
    waiting = threading.Thread(target=lambda: news.append(control.progress("c@1", seen.revision, 30.0).revision))
    waiting.start()
    device.say(an_attempt("o1", 0))
    waiting.join(30.0)
    assert news
    assert news[0] > seen.revision
    with pytest.raises(NotFound):
        control.progress("x@1")


def test_cancelling_reaches_the_device(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order(f"o{i}") for i in range(4)])
    assert device.session is not None
    device.session.take()
    control.cancel("c@1", ["o0", "o3", "unknown"])
    assert device.session.take() == [Cancel("o0"), an_order("o2")]
    assert device.say(OrderEnded("o0", cancelled=True)) == []
    assert states(control) == {"o0": OrderState.CANCELLED, "o1": OrderState.SENT, "o2": OrderState.SENT, "o3": OrderState.CANCELLED}
    control.cancel("another@1", ["o1"])
    assert states(control)["o1"] is OrderState.SENT


def test_an_agent_that_drains_gets_nothing_more(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1"), an_order("o2")])
    device.say(OrderEnded("o1", cancelled=True), OrderEnded("o2", cancelled=True))
    assert states(control) == {"o1": OrderState.QUEUED, "o2": OrderState.QUEUED}
    assert [s.state for s in control.devices()] == ["draining"]
    assert ids(device.restart("i2")) == ["o1", "o2"]


def test_a_device_that_its_user_paused_gets_nothing_until_resumed(control: Control, device: FakeDevice) -> None:
    device.attach()
    device.say(Heartbeat(paused=True))
    control.submit([an_order("o1")])
    assert device.session is not None
    assert device.session.take() == []
    (status,) = control.devices()
    assert status.state == "paused"
    assert "edge-agent pause --resume" in status.reason
    assert ids(device.say(Heartbeat())) == ["o1"]


def test_what_a_paused_device_gives_back_goes_to_others_and_it_is_not_draining(control: Control, farm: Farm) -> None:
    one, two = FakeDevice(farm, a_device("a", "h1")), FakeDevice(farm, a_device("b", "h2"))
    one.attach()
    control.submit([an_order("o1", device="", device_class=one.device.device_class)])
    two.attach()
    assert one.session is not None
    assert two.session is not None
    assert (ids(one.session.take()), two.session.take()) == (["o1"], [])
    one.say(an_attempt("o1", 0, device="a"), Heartbeat("o1", paused=True), OrderEnded("o1", cancelled=True))
    assert launches(two.session.take()) == {"o1": (1, 2)}
    assert [s.state for s in control.devices()] == ["paused", "busy"]
    control.submit([an_order("o2", device="a")])
    assert ids(one.say(Heartbeat())) == ["o2"]


def test_devices_of_one_host_take_turns(control: Control, farm: Farm) -> None:
    one, two = FakeDevice(farm, a_device("a", "h")), FakeDevice(farm, a_device("b", "h"))
    one.attach()
    two.attach()
    control.submit([an_order("a1", device="a", launches=(0,)), an_order("b1", device="b", launches=(0,))])
    assert one.session is not None
    assert two.session is not None
    assert ids(one.session.take()) == ["a1"]
    assert two.session.take() == []
    one.say(an_attempt("a1", 0, device="a"))
    assert ids(two.session.take()) == ["b1"]


def test_an_order_of_a_class_goes_to_any_of_it(control: Control, farm: Farm) -> None:
    one, two = FakeDevice(farm, a_device("a", "h1")), FakeDevice(farm, a_device("b", "h2"))
    one.attach()
    two.attach()
    control.submit([an_order(f"o{i}", device="", device_class=one.device.device_class) for i in range(4)])
    assert one.session is not None
    assert two.session is not None
    assert ids(one.session.take()) == ["o0", "o2"]
    assert ids(two.session.take()) == ["o1", "o3"]


# Attaching again: reconnects, restarts, losses


def test_a_run_occupies_only_the_devices_that_it_names(control: Control, farm: Farm) -> None:
    """Another device of the class may be somebody's board that the fleet file says nothing of."""
    named, other = (FakeDevice(farm, a_device(name, f"h-{name}")) for name in ("pi-1", "pi-2"))
    named.attach()
    other.attach()
    run = control.open_run("mine", "spec", "{}", "me", {})
    control.update_run(replace(run, devices=("pi-1",)))
    control.submit([an_order(f"o{n}", run.name, "", (0,), a_device().device_class) for n in range(3)])
    assert named.session is not None
    assert other.session is not None
    assert (ids(named.session.take()), ids(other.session.take())) == (["o0", "o1"], [])
    control.update_run(replace(run, devices=("pi-1", "pi-2")))
    named.say(an_attempt("o0", 0, device="pi-1"), OrderEnded("o0"))
    assert ids(other.session.take()) == ["o2"]


def test_a_lost_stream_is_no_loss(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1")])
    for _ in range(4):
        device.hang_up()
        assert [s.state for s in control.devices()] == ["lost"]
        assert device.attach(a_hello(open_orders=("o1",))) == []
    assert states(control) == {"o1": OrderState.SENT}


def test_only_remaining_launches_are_sent_again(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1")])
    device.say(an_attempt("o1", 1))
    device.hang_up()
    rest = device.restart("i2", a_hello(instance="i2", unacknowledged=(AttemptId("o1", 0),)))
    assert launches(rest) == {"o1": (2,)}
    device.say(an_attempt("o1", 0), an_attempt("o1", 2))
    assert states(control) == {"o1": OrderState.DONE}


def test_a_process_lost_twice_quarantines_its_order_only(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1"), an_order("o2")])
    device.say(Heartbeat("o1"))
    device.hang_up()
    assert ids(device.restart("i2")) == ["o1", "o2"]
    device.say(Heartbeat("o1"))
    device.hang_up()
    assert ids(device.restart("i3")) == ["o2"]
    first, second = control.progress("c@1").orders
    assert (first.state, second.state) == (OrderState.QUARANTINED, OrderState.SENT)
    (attempt,) = first.attempts
    assert isinstance(attempt.outcome, Failure)
    assert attempt.outcome.kind is FailureKind.DEVICE_LOST
    assert "bench-1" in attempt.outcome.detail


def test_an_order_that_gets_on_is_not_quarantined(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1", launches=(0, 1, 2, 3))])
    for index in range(3):
        device.say(an_attempt("o1", index))
        device.hang_up()
        device.restart(f"i{index + 2}")
    assert states(control) == {"o1": OrderState.SENT}


def test_an_attempt_in_the_journal_counts_as_getting_on(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1", launches=(0, 1, 2, 3))])
    for index in range(3):
        device.hang_up()
        instance = f"i{index + 2}"
        device.restart(instance, a_hello(instance=instance, unacknowledged=(AttemptId("o1", index),)))
        device.say(an_attempt("o1", index))
    assert states(control) == {"o1": OrderState.SENT}


def test_a_device_that_is_given_up_says_why(control: Control, farm: Farm, device: FakeDevice) -> None:
    device.attach()
    farm.mark_lost("bench-1", "its agent died 6 times")
    device.hang_up()
    assert [(s.state, s.reason) for s in control.devices()] == [("lost", "its agent died 6 times")]
    device.attach()
    device.hang_up()
    assert [(s.state, s.reason) for s in control.devices()] == [("lost", "its connection is gone")]


def test_a_device_may_be_given_up_before_it_came_or_while_it_is_there(control: Control, farm: Farm, device: FakeDevice) -> None:
    device.attach()
    farm.mark_lost("bench-1", "it did not get ready")
    farm.mark_lost("absent", "its agent can't be started")
    assert [(s.device.name, s.state, s.reason) for s in control.devices()] == [
        ("absent", "lost", "its agent can't be started"),
        ("bench-1", "lost", "it did not get ready"),
    ]
    control.submit([an_order("o1")])
    assert states(control) == {"o1": OrderState.QUEUED}
    assert farm.wait_for_devices(["absent", "bench-1"], 600.0) == ["absent", "bench-1"]
    device.attach()
    assert states(control) == {"o1": OrderState.SENT}
    assert farm.wait_for_devices(["absent", "bench-1"], 600.0) == ["absent"]


def test_the_heartbeat_says_whose_fault_it_was(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1"), an_order("o2")])
    for instance in ("i2", "i3"):
        device.say(Heartbeat("o2"))
        device.hang_up()
        device.restart(instance)
    assert states(control) == {"o1": OrderState.SENT, "o2": OrderState.QUARANTINED}


def test_silence_takes_orders_back_and_counts_as_a_loss(control: Control, farm: Farm, device: FakeDevice, clock: FakeClock) -> None:
    device.attach()
    other = FakeDevice(farm, a_device("bench-2", "host-2"))
    control.submit([an_order("o1", device="", device_class=device.device.device_class)])
    for _ in range(2):
        farm.tick()
        clock.now += 16
        farm.tick()
        (status,) = [s for s in control.devices() if s.device.name == "bench-1"]
        assert (status.state, status.reason) == ("lost", "no heartbeat for 15 s")
        assert device.session is not None
        with pytest.raises(Unreachable, match="no heartbeat"):
            device.session.take()
        clock.now += 31
        farm.tick()
        if states(control)["o1"] is OrderState.QUEUED:
            device.restart("i2")
    assert states(control) == {"o1": OrderState.QUARANTINED}
    other.attach()
    assert states(control) == {"o1": OrderState.QUARANTINED}


def test_what_a_silent_device_held_goes_to_another(control: Control, farm: Farm, device: FakeDevice, clock: FakeClock) -> None:
    device.attach()
    control.submit([an_order("o1", device="", device_class=device.device.device_class)])
    device.say(an_attempt("o1", 0))
    device.hang_up()
    clock.now += 31
    farm.tick()
    other = FakeDevice(farm, a_device("bench-2", "host-2"))
    assert launches(other.attach()) == {"o1": (1, 2)}
    # The first one comes back, still with the order and a result that arrived nowhere else.
    assert Cancel("o1") in device.attach(a_hello(open_orders=("o1",), unacknowledged=(AttemptId("o1", 1),)))
    device.say(an_attempt("o1", 1))
    other.say(an_attempt("o1", 2, device="bench-2"))
    assert states(control) == {"o1": OrderState.DONE}


def test_a_device_that_was_cut_off_keeps_its_order(control: Control, farm: Farm, device: FakeDevice, clock: FakeClock) -> None:
    device.attach()
    control.submit([an_order("o1")])
    device.hang_up()
    clock.now += 31
    farm.tick()
    assert states(control) == {"o1": OrderState.QUEUED}
    assert device.attach(a_hello(open_orders=("o1",))) == []
    assert states(control) == {"o1": OrderState.SENT}


def test_a_restart_of_the_controller_is_no_loss(store: SqlStore, tmp_path: Path, clock: FakeClock) -> None:
    first = _farm(store, tmp_path, clock)
    device = FakeDevice(first)
    device.attach()
    first.submit([an_order("o1")])
    for restart in range(4):
        farm = _farm(store, tmp_path, clock)
        device = FakeDevice(farm)
        assert launches(device.attach(a_hello(instance=f"x{restart}"))) == {"o1": (0, 1, 2)}
    assert store.queue()[0].losses == 0
    # The agent outlived the controller: it goes on.
    again = FakeDevice(_farm(store, tmp_path, clock))
    assert again.attach(a_hello(open_orders=("o1",))) == []


def test_orders_of_a_device_that_never_comes_back_are_freed(store: SqlStore, tmp_path: Path, clock: FakeClock) -> None:
    first = _farm(store, tmp_path, clock)
    device = FakeDevice(first)
    device.attach()
    first.submit([an_order("o1", device="", device_class=device.device.device_class)])
    farm = _farm(store, tmp_path, clock)
    clock.now += 31
    farm.tick()
    assert ids(FakeDevice(farm, a_device("bench-2", "host-2")).attach()) == ["o1"]
    assert store.queue()[0].losses == 0


def test_retry_lifts_a_quarantine(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1")])
    for instance in ("i2", "i3"):
        device.hang_up()
        device.restart(instance)
    assert states(control) == {"o1": OrderState.QUARANTINED}
    control.retry("c@1")
    assert device.session is not None
    assert launches(device.session.take()) == {"o1": (0, 1, 2)}
    assert control.progress("c@1").orders[0].attempts == ()


def test_retry_runs_a_failed_launch_again(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1", launches=(0, 1))])
    device.say(an_attempt("o1", 0), a_failed_attempt("o1", 1), OrderEnded("o1"))
    before = control.progress("c@1")
    assert states(control) == {"o1": OrderState.DONE}
    control.retry("c@1")
    assert device.session is not None
    assert launches(device.session.take()) == {"o1": (1,)}
    after = control.progress("c@1", before.revision)
    assert after.orders[0].attempts == (an_attempt("o1", 0),)


def test_an_order_is_sent_again_only_once_its_device_has_let_go_of_it(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1", launches=(0, 1))])
    device.say(a_failed_attempt("o1", 0), a_failed_attempt("o1", 1))
    control.retry("c@1")
    assert device.session is not None
    assert launches(device.session.take()) == {}
    assert launches(device.say(OrderEnded("o1"))) == {"o1": (0, 1)}
    assert states(control) == {"o1": OrderState.SENT}


def test_an_order_whose_end_is_never_said_is_sent_again_all_the_same(
    control: Control, farm: Farm, device: FakeDevice, clock: FakeClock
) -> None:
    """A device that was started again sends the attempt out of its journal, but holds the order no more."""
    device.attach()
    control.submit([an_order("o1", launches=(0,))])
    device.say(a_failed_attempt("o1", 0))
    control.retry("c@1")
    assert device.session is not None
    assert launches(device.session.take()) == {}
    clock.now += 4
    farm.tick()
    assert launches(device.session.take()) == {"o1": (0,)}


def test_only_the_named_orders_are_retried(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1", launches=(0,)), an_order("o2", launches=(0,))])
    for name in ("o1", "o2"):
        device.say(a_failed_attempt(name, 0), OrderEnded(name))
    control.retry("c@1", {"o2"})
    found = {s.order.id: len(s.attempts) for s in control.progress("c@1").orders}
    assert found == {"o1": 1, "o2": 0}


def test_what_fails_on_the_controllers_disk_is_told_to_who_waits(farm: Farm, control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1")])
    revision = control.progress("c@1").revision
    for wait in (
        lambda: control.progress("c@1", revision, 60.0),
        lambda: farm.wait_for_devices(["absent"], 60.0),
        lambda: control.wait_for_deployments([], 60.0),
    ):
        farm.storage_failed(StorageError("the disk is full"))
        with pytest.raises(StorageError, match="the disk is full"):
            wait()
    assert control.progress("c@1").revision == revision, "it is told once"


# Sessions and states


def test_a_newer_session_supersedes_the_older(control: Control, device: FakeDevice) -> None:
    device.attach()
    old = device.session
    device.attach()
    assert old is not None
    assert device.session is not None
    assert device.session.epoch > old.epoch
    for call in (old.take, lambda: device.farm.receive(old, Heartbeat())):
        with pytest.raises(Busy, match="superseded by a newer session of device 'bench-1'"):
            call()
    device.farm.detach(old)  # its stream ends: that says nothing about the newer one
    assert [s.state for s in control.devices()] == ["ready"]


def test_a_secret_serves_one_process_and_ends_when_its_session_is_used(device: FakeDevice) -> None:
    farm, secret = device.farm, device.secret
    device.attach()
    device.token = ""
    device.attach()  # the Welcome was lost: the same process shows its secret again
    with pytest.raises(Denied, match="used by another process"):
        farm.attach(Peer("bench-1", secret), a_hello(instance="other"), lambda: None)
    device.attach()
    with pytest.raises(Denied, match="used already"):
        farm.doorkeeper.check(Peer("bench-1", secret))
    token = device.token
    device.restart("i2")
    with pytest.raises(Denied, match="not valid any more"):
        farm.doorkeeper.check(Peer("bench-1", session=token))


@pytest.mark.parametrize("peer", [Peer(""), Peer("bench-1"), Peer("bench-1", "x"), Peer("bench-1", session="x"), Peer("nobody", "", "")])
def test_nobody_comes_in_without_a_proof(device: FakeDevice, peer: Peer) -> None:
    with pytest.raises(Denied):
        device.farm.doorkeeper.check(peer)


def test_a_device_attaches_under_its_own_name(device: FakeDevice) -> None:
    for hello in (a_hello(a_device("other")), a_hello(instance="")):
        with pytest.raises(ProtocolError, match="said Hello as"):
            device.attach(hello)
    device.attach()
    with pytest.raises(ProtocolError, match="Hello twice"):
        device.say(a_hello())


def test_a_probing_device_waits_and_is_what_it_was(control: Control, device: FakeDevice) -> None:
    control.submit([an_order("o1")])
    bare = replace(a_device(), capabilities=(), fingerprint={})
    assert device.attach(a_hello(bare, probed=False)) == []
    assert [s.state for s in control.devices()] == ["probing"]
    assert ids(device.say(Probed(a_device()))) == ["o1"]
    assert [s.state for s in control.devices()] == ["busy"]
    device.hang_up()
    device.attach(a_hello(bare, probed=False, open_orders=("o1",)))
    (status,) = control.devices()
    assert (status.device, status.device_class) == (a_device(), a_device().device_class)


def test_an_old_agent_attaches_and_gets_nothing(control: Control, device: FakeDevice) -> None:
    control.submit([an_order("o1")])
    assert device.attach(a_hello(protocol=0)) == []
    control.deploy([a_deployment()])
    (status,) = control.devices()
    assert status.state == "needs_upgrade"
    assert "protocol 0" in status.reason
    assert device.session is not None
    assert device.session.take() == []


def test_devices_are_remembered(store: SqlStore, tmp_path: Path, clock: FakeClock) -> None:
    FakeDevice(_farm(store, tmp_path, clock)).attach()
    farm = _farm(store, tmp_path, clock)
    assert [(s.device, s.state, s.last_seen_unix_ms) for s in farm.devices()] == [(a_device(), "lost", 1000)]
    assert farm.wait_for_devices(["bench-1", "other"], 0.01) == ["bench-1", "other"]
    FakeDevice(farm).attach()
    assert farm.wait_for_devices(["bench-1"], 10.0) == []


# Artifacts and rights


def test_artifacts_pass_through(control: Control, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(MODEL_BYTES)
    digest = control.put(tmp_path / "file")
    assert control.put(MODEL_BYTES) == digest
    assert control.has(digest)
    assert control.get(digest).read_bytes() == MODEL_BYTES
    with pytest.raises(NotFound):
        control.get(INPUTS)


def allowed(farm: Farm, digest: str) -> bool:
    try:
        farm.check_fetch("bench-1", digest)
    except Denied:
        return False
    return True


def test_a_device_fetches_what_its_orders_and_deployments_need(control: Control, device: FakeDevice) -> None:
    farm, model, other = device.farm, digest_bytes(MODEL_BYTES), digest_bytes(b"another model")
    device.attach()
    assert not allowed(farm, model)
    with pytest.raises(Denied):
        farm.check_stat("bench-1")
    control.submit([an_order("o1", launches=(0,))])
    assert all(allowed(farm, d) for d in (model, other, INPUTS))
    assert not allowed(farm, digest_bytes(b"something else"))
    with pytest.raises(Denied):
        farm.check_fetch("bench-2", model)
    device.say(an_attempt("o1", 0))
    assert not allowed(farm, model)
    control.deploy([a_deployment()])
    assert allowed(farm, model)
    assert not allowed(farm, other)


def test_pushes_stay_within_the_open_orders(control: Control, device: FakeDevice) -> None:
    farm = device.farm
    device.attach()
    with pytest.raises(QuotaExceeded, match="1 bytes to push, its open orders allow 0 more"):
        farm.take_quota("bench-1", 1)
    control.submit([an_accuracy_order("a1", limit=10**6), a_memory_order("m1")])
    quota = 2 * 10**6 + 64 * 2**20 + 2**20
    farm.take_quota("bench-1", quota)
    with pytest.raises(QuotaExceeded):
        farm.take_quota("bench-1", 1)
    farm.take_quota("bench-1", -100)
    farm.take_quota("bench-1", 100)
    device.hang_up()
    device.restart("i2")  # the orders are sent again, and may need as much again
    farm.take_quota("bench-1", quota)
    device.say(OrderEnded("a1"), OrderEnded("m1"))
    with pytest.raises(QuotaExceeded):
        farm.take_quota("bench-1", 1)


# Deployments


def told(device: FakeDevice) -> list[Deployment]:
    assert device.session is not None
    return [b for b in device.session.take() if isinstance(b, Deployment)]


def committed(deployment: Deployment, state: DeploymentState = DeploymentState.COMMITTED) -> DeploymentStatus:
    place = (deployment.id, deployment.device, deployment.model, deployment.generation)
    return DeploymentStatus(
        *place, state, deployment.candidate.artifact.digest, "/current/model.onnx", "it said so" if state != "committed" else ""
    )


def roll_out(control: Control, device: FakeDevice, payload: bytes) -> Deployment:
    control.deploy([a_deployment(payload=payload)])
    (sent,) = told(device)
    device.say(committed(sent))
    return sent


def test_a_deployment_is_sent_once_and_its_status_comes_back(control: Control, device: FakeDevice) -> None:
    device.attach()
    (status,) = control.deploy([a_deployment()])
    assert (status.generation, status.state) == (1, DeploymentState.ORDERED)
    assert len(status.id) == 24
    (sent,) = told(device)
    assert sent == a_deployment(generation=1, id=status.id)
    assert control.wait_for_deployments([status.id], 0.01)[0].state is DeploymentState.ORDERED
    assert control.deploy([a_deployment()]) == [status]
    assert told(device) == []
    device.say(committed(sent, DeploymentState.STAGED))
    news: list[DeploymentStatus] = []
    waiting = threading.Thread(target=lambda: news.extend(control.wait_for_deployments([status.id], 30.0)))
    waiting.start()
    device.say(committed(sent))
    waiting.join(30.0)
    assert news == [committed(sent)]
    assert control.deploy([a_deployment()]) == news
    assert control.deployments("m") == control.deployments() == news
    assert control.deployments("other") == []
    with pytest.raises(NotFound):
        control.wait_for_deployments(["unknown"], 0.0)


def test_an_absent_device_gets_its_deployment_when_it_comes(control: Control, device: FakeDevice) -> None:
    with pytest.raises(NotFound, match="no device 'bench-1' is registered"):
        control.deploy([a_deployment()])
    device.attach()
    device.hang_up()
    (status,) = control.deploy([a_deployment()])
    assert [b.id for b in device.attach() if isinstance(b, Deployment)] == [status.id]
    assert [b.id for b in device.attach() if isinstance(b, Deployment)] == [status.id]  # until it says otherwise
    said = (committed(a_deployment(generation=1, id=status.id)),)
    assert device.attach(a_hello(deployments=said)) == []
    assert control.deployments() == list(said)


def test_what_failed_is_not_sent_again_without_retry(control: Control, device: FakeDevice) -> None:
    device.attach()
    good = roll_out(control, device, b"good")
    control.deploy([a_deployment(payload=b"bad")])
    (bad,) = told(device)
    device.say(committed(bad, DeploymentState.FAILED))
    assert control.deploy([a_deployment(payload=b"bad")]) == [committed(bad, DeploymentState.FAILED)]
    assert control.deploy([a_deployment(payload=b"good")]) == [committed(good)]  # it still runs
    assert told(device) == []
    assert device.attach(a_hello(deployments=(committed(bad, DeploymentState.FAILED), committed(good)))) == []
    (again,) = control.deploy([a_deployment(payload=b"bad")], retry=True)
    assert (again.generation, again.state) == (3, DeploymentState.ORDERED)
    (sent,) = told(device)
    assert sent.id == again.id != bad.id


def test_a_driver_s_own_id_is_idempotent_and_can_be_retried(control: Control, device: FakeDevice) -> None:
    device.attach()
    (first,) = control.deploy([a_deployment(id="mine")])
    assert first.id == "mine"
    assert control.deploy([a_deployment(id="mine")]) == [first]
    (sent,) = told(device)
    device.say(committed(sent, DeploymentState.FAILED))
    assert control.deploy([a_deployment(id="mine")])[0].state is DeploymentState.FAILED
    (again,) = control.deploy([a_deployment(id="mine")], retry=True)
    assert (again.generation, again.state) == (2, DeploymentState.ORDERED)
    with pytest.raises(UserError, match="generation 2 is not above 2"):
        control.deploy([a_deployment(payload=b"new", generation=2)])


def test_rolling_back_orders_the_one_before(control: Control, device: FakeDevice) -> None:
    device.attach()
    for call in (lambda: control.roll_back("m", []), lambda: control.roll_back("m", ["bench-1"])):
        with pytest.raises(UserError):
            call()
    first = roll_out(control, device, b"one")
    with pytest.raises(UserError, match="no earlier deployment"):
        control.roll_back("m", ["bench-1"])
    second = roll_out(control, device, b"two")
    (status,) = control.roll_back("m", [])
    (sent,) = told(device)
    assert (sent.candidate, sent.generation, sent.id) == (first.candidate, 3, status.id)
    # Undone, and so not to be sent again, from the moment it was ordered.
    assert control.deploy([a_deployment(payload=b"two")])[0].id == second.id
    device.say(committed(sent))
    (undone,) = control.deploy([a_deployment(payload=b"two")])
    assert (undone.id, undone.state, undone.reason) == (second.id, DeploymentState.ROLLED_BACK, "rolled back by the user")
    with pytest.raises(UserError, match="no earlier deployment"):
        control.roll_back("m", ["bench-1"])
    assert control.deploy([a_deployment(payload=b"two")], retry=True)[0].generation == 4


def test_a_roll_back_that_fails_leaves_the_present_one(control: Control, device: FakeDevice) -> None:
    device.attach()
    roll_out(control, device, b"one")
    second = roll_out(control, device, b"two")
    control.roll_back("m", ["bench-1"])
    (sent,) = told(device)
    device.say(committed(sent, DeploymentState.FAILED))
    assert control.deploy([a_deployment(payload=b"two")]) == [committed(second)]


def test_a_roll_back_on_the_device_itself_is_learned(control: Control, device: FakeDevice) -> None:
    device.attach()
    first, second = roll_out(control, device, b"one"), roll_out(control, device, b"two")
    said = (committed(second, DeploymentState.ROLLED_BACK), committed(first))
    assert device.attach(a_hello(deployments=said)) == []
    assert control.deploy([a_deployment(payload=b"two")])[0].state is DeploymentState.ROLLED_BACK
    assert control.deploy([a_deployment(payload=b"one")]) == [committed(first)]
    assert roll_out(control, device, b"three").generation == 3


def test_a_device_with_another_controller_s_deployment(control: Control, device: FakeDevice) -> None:
    foreign = DeploymentStatus("foreign", "bench-1", "m", 7, DeploymentState.COMMITTED)
    assert device.attach(a_hello(deployments=(foreign,))) == []
    assert control.deployments() == [foreign]
    (status,) = control.deploy([a_deployment()])
    assert status.generation == 8


def test_errors_are_of_our_tree(control: Control) -> None:
    calls = (
        lambda: control.update_run(replace(control.runs()[0], name="x@9")),
        lambda: control.retry("x@9"),
        lambda: control.submit([an_order(run="x@9")]),
    )
    for call in calls:
        with pytest.raises(EdgefarmError, match="no run 'x@9'"):
            call()


# Holds: leases, drains, drivers; runs that end early


@pytest.fixture
def two_runs(farm: Farm) -> dict[str, str]:
    """Orders of another owner's run, besides `c@1`."""
    return {"me": "c@1", "bob": farm.open_run("bobs", "spec", "{}", "bob", {}).name}


def test_a_leased_device_is_its_holder_s(control: Control, farm: Farm, device: FakeDevice, two_runs: dict[str, str]) -> None:
    device.attach()
    farm.lease(["bench-1"], "bob", 60.0)
    control.submit([an_order("mine"), an_order("bobs", run=two_runs["bob"])])
    assert device.session is not None
    assert ids(device.session.take()) == ["bobs"]
    (status,) = control.devices()
    assert "leased to bob until 1970-01-01 00:01 UTC; runs: bobs@1 of bob; 1 order waits for it" in status.reason
    with pytest.raises(Busy, match="device 'bench-1' is leased to bob"):
        control.lease(["bench-1"], "me", 60.0)
    farm.release(["bench-1"], "bob")
    assert ids(device.session.take()) == ["mine"]


def test_a_crashed_holder_s_device_is_free_when_its_time_is_over(
    store: SqlStore, tmp_path: Path, clock: FakeClock, two_runs: dict[str, str]
) -> None:
    wall = FakeClock(1000)
    farm = Farm(store, ArtifactStore(tmp_path / "artifacts"), clock=clock, wall=lambda: int(wall.now))
    device = FakeDevice(farm)
    device.attach()
    farm.lease(["bench-1"], "bob", 60.0)
    farm.submit([an_order("o1")])
    farm.tick()
    assert device.session is not None
    assert ids(device.session.take()) == []
    wall.now += 59_999
    farm.tick()
    assert [h.holder for h in farm.holds()] == ["bob"]
    assert ids(device.session.take()) == []
    wall.now += 1
    farm.tick()
    assert farm.holds() == store.holds() == []
    assert ids(device.session.take()) == ["o1"]


def test_a_lease_outlives_the_controller(store: SqlStore, tmp_path: Path, clock: FakeClock, two_runs: dict[str, str]) -> None:
    FakeDevice(first := _farm(store, tmp_path, clock)).attach()
    first.lease(["bench-1"], "bob", 60.0)
    farm = _farm(store, tmp_path, clock)
    device = FakeDevice(farm)
    device.attach()
    farm.submit([an_order("mine"), an_order("bobs", run=two_runs["bob"])])
    assert device.session is not None
    assert ids(device.session.take()) == ["bobs"]


def test_leasing_takes_back_what_was_not_begun(control: Control, farm: Farm, device: FakeDevice, two_runs: dict[str, str]) -> None:
    device.attach()
    control.submit([an_order("o1", launches=(0,)), an_order("o2", launches=(0,))])
    device.say(Heartbeat("o1"))
    farm.lease(["bench-1"], "bob", 60.0)
    assert device.session is not None
    assert device.session.take() == [Cancel("o2")]
    assert states(control) == {"o1": OrderState.SENT, "o2": OrderState.QUEUED}
    device.say(OrderEnded("o2", cancelled=True))
    assert device.say(an_attempt("o1", 0), OrderEnded("o1")) == [Ack("o1", 0)]
    farm.release(["bench-1"], None)
    assert ids(device.session.take()) == ["o2"]


def test_what_was_taken_back_while_a_device_was_away_is_cancelled_there(
    control: Control, farm: Farm, device: FakeDevice, clock: FakeClock, two_runs: dict[str, str]
) -> None:
    device.attach()
    control.submit([an_order("o1")])
    device.hang_up()
    clock.now += 31
    farm.tick()
    farm.lease(["bench-1"], "bob", 60.0)
    assert device.attach(a_hello(open_orders=("o1",))) == [Cancel("o1")]
    assert states(control) == {"o1": OrderState.QUEUED}


def test_a_drained_device_ends_what_runs_and_takes_nothing(control: Control, device: FakeDevice) -> None:
    device.attach()
    control.submit([an_order("o1", launches=(0,)), an_order("o2", launches=(0,))])
    device.say(Heartbeat("o1"))
    (hold,) = control.drain(["bench-1"], "me")
    assert (hold.kind, hold.name, hold.expires_unix_ms) == (HoldKind.DRAIN, "bench-1", 0)
    assert device.session is not None
    assert device.session.take() == [Cancel("o2")]
    device.say(OrderEnded("o2", cancelled=True), an_attempt("o1", 0), OrderEnded("o1"))
    assert states(control) == {"o1": OrderState.DONE, "o2": OrderState.QUEUED}
    (status,) = control.devices()
    assert (status.state, status.reason) == ("draining", f"drained by {hold.holder} until it is released; 1 order waits for it")
    assert control.release(["bench-1"], None) == ["bench-1"]
    assert ids(device.session.take()) == ["o2"]
    assert control.release(["bench-1"], None) == []


def test_holding_is_all_or_none(control: Control, farm: Farm, device: FakeDevice) -> None:
    device.attach()
    FakeDevice(farm, a_device("bench-2", "host-2")).attach()
    for call in (
        lambda: control.lease(["bench-1", "x"], "me", 60.0),
        lambda: control.drain(["x"], "me"),
        lambda: control.release(["x"], None),
    ):
        with pytest.raises(NotFound, match="no device 'x' is registered"):
            call()
    with pytest.raises(UserError, match="lasts longer than 0 s"):
        control.lease(["bench-1"], "me", 0.0)
    farm.lease(["bench-2"], "bob", 60.0)
    with pytest.raises(Busy):
        control.lease(["bench-1", "bench-2"], "me", 60.0)
    assert [h.name for h in control.holds()] == ["bench-2"]
    with pytest.raises(Denied, match=r"leased to bob until .*; only its holder or an admin"):
        farm.release(["bench-1", "bench-2"], "eve")


def test_a_campaign_has_one_driver_at_a_time(store: SqlStore, tmp_path: Path, clock: FakeClock) -> None:
    wall = FakeClock(1000)
    farm = Farm(store, ArtifactStore(tmp_path / "artifacts"), clock=clock, wall=lambda: int(wall.now))
    farm.drive("c", "one")
    wall.now += 20_000
    farm.drive("c", "one")
    wall.now += 20_000
    with pytest.raises(Busy, match=r"campaign 'c' is driven by another command already \(one\)"):
        farm.drive("c", "two")
    farm.leave("c", "two")
    farm.drive("other", "two")
    wall.now += 10_000
    farm.drive("c", "two")  # the first one gave no sign of life for 30 s
    with pytest.raises(Busy, match="two"):
        farm.drive("c", "one")


def test_a_driver_s_hold_over_control(control: Control) -> None:
    control.drive("c", "one")
    control.drive("c", "one")
    with pytest.raises(Busy):
        control.drive("c", "two")
    control.leave("c", "one")
    control.drive("c", "two")
    assert [(h.kind, h.name) for h in control.holds()] == [(HoldKind.DRIVER, "c")]


def test_a_cancelled_run_ends_for_good(control: Control, farm: Farm, device: FakeDevice, tmp_path: Path, clock: FakeClock) -> None:
    device.attach()
    control.submit([an_order("o1"), an_order("o2"), an_order("o3")])
    assert device.session is not None
    device.session.take()
    ended = control.cancel_run("c@1")
    assert (ended.state, ended.exit_code, ended.finished_unix_ms) == ("cancelled", 130, 1000)
    assert device.session.take() == [Cancel("o1"), Cancel("o2")]
    calls = (
        lambda: control.progress("c@1"),
        lambda: control.submit([an_order("o4")]),
        lambda: control.update_run(replace(ended, state="measuring")),
    )
    for call in calls:
        with pytest.raises(RunCancelled, match=r"run 'c@1' was cancelled by another command"):
            call()
    with pytest.raises(UserError, match="has ended already: it is cancelled"):
        control.cancel_run("c@1")
    with pytest.raises(NotFound):
        control.cancel_run("x@1")
    assert control.runs("c") == [ended]
    assert control.open_run("c", "spec", "{}", "me", {}).name == "c@2"


def test_neighbours_say_what_they_wait_for(control: Control, farm: Farm) -> None:
    one, two = FakeDevice(farm, a_device("a", "h")), FakeDevice(farm, a_device("b", "h"))
    one.attach()
    two.attach()
    control.submit([an_order("a1", device="a"), an_order("b1", device="b")])
    assert [s.reason for s in control.devices()] == [
        "runs: c@1 of me",
        "1 order waits for it; its host measures on 'a': c@1 of me",
    ]
