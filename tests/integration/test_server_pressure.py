"""Devices that say too much, or read nothing: nobody else waits for them, and they are cut all the same."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.artifacts import ArtifactStore
from controller.farm import Farm
from controller.server import Server
from controller.servicers import artifacts as artifacts_servicer
from controller.servicers import fleet as fleet_servicer
from controller.sessions import Session
from controller.store import SqlStore
from controller.telemetry import Relay
from edgefarm import wire
from edgefarm.channels import as_error, open_channel
from edgefarm.digest import digest_bytes
from edgefarm.errors import Unreachable
from edgefarm.metrics import DEVICE_METRICS
from edgefarm.model import (
    Ack,
    Cancel,
    Capability,
    DeploymentState,
    DeploymentStatus,
    Failure,
    FailureKind,
    Family,
    Heartbeat,
    Order,
    OrderEnded,
    Probed,
    Series,
    Telemetry,
    Welcome,
)
from edgefarm.v1 import artifacts_pb2, artifacts_pb2_grpc, control_pb2, control_pb2_grpc, fleet_pb2_grpc
from tests.fakes.agent import FakeAgent, code_of
from tests.fakes.orders import a_deployment, a_device, a_hello, an_attempt, an_order


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    store = SqlStore(tmp_path / "store.db")
    made = Farm(store, ArtifactStore(tmp_path / "artifacts"), telemetry_s=1.0)
    made.open_run("c", "spec", "{}", "me", {})
    yield made
    store.close()


class FakeDeafAgent:
    """Attaches, and reads nothing but its Welcome until `read_on`."""

    def __init__(self, address: str, secret: str) -> None:
        self._said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._said.put(wire.encode_agent(a_hello()))
        self._channel = open_channel(address)
        stub = fleet_pb2_grpc.FleetStub(self._channel)  # type: ignore[no-untyped-call]
        metadata = (("edgefarm-device", "bench-1"), ("edgefarm-secret", secret))
        self._call = stub.Attach(iter(self._said.get, None), metadata=metadata, timeout=60)
        assert isinstance(wire.decode_controller(next(self._call)), Welcome)

    def read_on(self) -> tuple[int, tuple[str, str]]:
        """(messages that still came, how it ended)."""
        count = 0
        try:
            for _ in self._call:
                count += 1
        except grpc.RpcError as error:
            return count, code_of(error)
        raise AssertionError("the stream ended well")

    def close(self) -> None:
        self._said.put(None)
        self._channel.close()


def heard(farm: Farm, agent: FakeAgent) -> None:
    """Returns once all that the agent has said was heard."""
    agent.say(Heartbeat(paused=True))
    agent.say(OrderEnded("nobody's"))  # wakes those who wait
    with farm._changed:
        assert farm._changed.wait_for(lambda: farm.devices()[0].state == "paused", 20.0), farm.devices()


def test_a_device_that_reads_nothing_is_cut_like_any_other(farm: Farm, server: Server) -> None:
    deaf = FakeDeafAgent(server.address, farm.doorkeeper.invite("bench-1"))
    session = farm._dispatcher._stations["bench-1"].session
    assert session is not None
    session.send([Ack("x" * 1000, index) for index in range(9000)])  # far more than flow control lets through
    farm.expel("bench-1", "device 'bench-1' is revoked")
    with farm._changed:  # the stream's end is what brings the last word to the farm
        assert farm._changed.wait_for(lambda: farm._dispatcher._stations["bench-1"].session is None, 20.0)
    count, ended = deaf.read_on()
    assert ended == ("PERMISSION_DENIED", "denied")
    assert count < 9000
    deaf.close()


def test_a_device_that_never_reads_has_to_come_again() -> None:
    session = Session("bench-1", "i", 1, lambda: None)
    session.send(Cancel(str(n)) for n in range(10_000))
    assert session.ended is None
    session.send([Cancel("one more")])
    with pytest.raises(Unreachable, match="'bench-1' reads nothing"):
        session.take()


def test_who_says_no_hello_is_not_waited_for(farm: Farm, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_servicer, "_HELLO_S", 0.05)
    agent.attach(None)
    ended: Any = agent.wait_closed()
    assert code_of(ended) == ("INVALID_ARGUMENT", "protocol")
    assert "no Hello within" in ended.details()


def test_a_device_does_not_describe_itself_at_length(farm: Farm, agent: FakeAgent) -> None:
    """All descriptions go to everybody who asks for the devices: in one answer."""
    long = replace(a_device(), capabilities=(Capability("x", "y", "1", False, "z" * 70_000),))
    agent.attach(a_hello(long))
    ended: Any = agent.wait_closed()
    assert code_of(ended) == ("INVALID_ARGUMENT", "protocol")
    assert "device of 70058 bytes; at most 65536 are taken" in ended.details()
    assert farm.devices() == []
    agent.attach(a_hello())
    agent.wait(Welcome)
    farm.submit([an_order("o1")])
    agent.wait(Order)
    agent.say(Probed(long))
    heard(farm, agent)  # that one message was ignored, and no more
    assert farm.devices()[0].device == a_device()


def test_what_a_device_tells_of_itself_is_kept_only_so_far(farm: Farm, agent: FakeAgent) -> None:
    agent.attach(a_hello())
    agent.wait(Welcome)
    farm.submit([an_order("o1", launches=(0,))])
    agent.wait(Order)

    def a_status(generation: int, **changes: str) -> DeploymentStatus:
        return DeploymentStatus(f"d{generation}", "bench-1", "m", generation, DeploymentState.COMMITTED, **changes)

    agent.say(a_status(1, reason="x" * 70_000))
    agent.say(a_status(2**63))
    agent.say(replace(an_attempt("o1", 0), outcome=Failure(FailureKind.CRASH, "x" * 300_000)))
    for generation in range(2, 300):
        agent.say(a_status(generation))
    heard(farm, agent)
    assert len(farm.store.history("bench-1")) == 256
    assert farm.progress("c@1").orders[0].attempts == ()
    (ordered,) = farm.deploy([a_deployment()])
    assert ordered.generation == 258


def test_telemetry_beyond_all_measure_is_cut(farm: Farm, agent: FakeAgent) -> None:
    agent.attach(a_hello())
    agent.wait(Welcome)
    many = tuple(Series({"zone": str(n)}, 1.0) for n in range(100_000))
    agent.say(Telemetry((Family("edgefarm_temperature_celsius", many), *(Family(f"x{n}", many[:1]) for n in range(5000)))))
    heard(farm, agent)
    kept = farm.relay.report("bench-1").families
    assert {name: len(family.series) for name, family in kept.items()} == {"edgefarm_temperature_celsius": 512}


def test_a_report_of_all_that_a_device_can_tell_is_kept_whole() -> None:
    relay = Relay(1.0, lambda: 0)
    told = [Family(name, (Series(dict.fromkeys(m.labels, "a"), 1.0),)) for name, m in DEVICE_METRICS.items()]
    relay.take("d", Telemetry(tuple(told)))
    assert set(relay.report("d").families) == set(DEVICE_METRICS) - {"edgefarm_device_up"}


# Errors on their way


def test_an_error_with_much_to_say_keeps_its_code(farm: Farm, server: Server) -> None:
    """A message travels in a header, and those are limited: one that is too long would end the call as something else."""
    with open_channel(server.address) as channel:
        stub = control_pb2_grpc.ControlStub(channel)  # type: ignore[no-untyped-call]
        for name in ("x" * 100_000, "ü€" * 20_000):
            with pytest.raises(grpc.RpcError) as refused:
                stub.Submit(control_pb2.SubmitRequest(orders=[wire.encode(replace(an_order("o1"), run=name))]))
            assert code_of(refused.value) == ("NOT_FOUND", "not-found")
            assert as_error(refused.value).args[0].startswith(f"no run '{name[:50]}")
            assert as_error(refused.value).args[0].endswith(" …")


def test_a_push_that_falls_silent_gives_its_place_up(farm: Farm, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts_servicer, "SILENCE_S", 0.2)
    payload, more = bytes(3 * 2**20), queue.Queue[Any]()
    digest = digest_bytes(payload)
    more.put(artifacts_pb2.PushChunk(digest=digest, total=len(payload), data=payload[: 2**20]))
    with open_channel(server.address) as channel:
        artifacts = artifacts_pb2_grpc.ArtifactsStub(channel)  # type: ignore[no-untyped-call]
        silent = artifacts.Push.future(iter(more.get, None), timeout=60)
        whole = [artifacts_pb2.PushChunk(digest=digest, total=len(payload), data=payload[:0])]
        whole += [artifacts_pb2.PushChunk(data=payload[start : start + 2**20]) for start in range(0, len(payload), 2**20)]
        ended = as_error(silent.exception())
        monkeypatch.undo()
        more.put(None)
        assert isinstance(ended, Unreachable)
        assert str(ended) == "nothing came for 0.2 s: what had arrived is kept, go on from there"
        assert artifacts.Push(iter(whole), timeout=60).complete
    assert farm.artifacts.local_path(digest).read_bytes() == payload
