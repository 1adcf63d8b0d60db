"""The controller's server over real gRPC: streams, bytes, rights, errors."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from controller.artifacts import ArtifactStore
from controller.farm import Farm
from controller.server import RuntimeFolder, Server
from controller.store import SqlStore
from edgefarm.digest import digest_bytes
from edgefarm.errors import Busy
from edgefarm.model import Ack, Cancel, Deployment, DeploymentState, DeploymentStatus, Heartbeat, Order, OrderEnded, Probed, Welcome
from tests.fakes.agent import FakeAgent, code_of
from tests.fakes.orders import (
    INPUT_BYTES,
    INPUTS,
    MODEL_BYTES,
    a_deployment,
    a_device,
    a_hello,
    an_accuracy_order,
    an_attempt,
    an_order,
)

BIG = os.urandom(5 * 2**20 + 12345)
BIG_DIGEST = digest_bytes(BIG)


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    store = SqlStore(tmp_path / "store.db")
    made = Farm(store, ArtifactStore(tmp_path / "artifacts"))
    made.open_run("c", "spec", "{}", "me", {})
    made.put(MODEL_BYTES)
    made.put(INPUT_BYTES)
    yield made
    store.close()


def test_the_life_of_an_order(farm: Farm, agent: FakeAgent) -> None:
    agent.attach(a_hello(probed=False))
    (welcome,) = agent.wait(Welcome)
    assert (welcome.protocol, welcome.heartbeat_ns, bool(welcome.session)) == (1, 5 * 10**9, True)
    agent.say(Probed(a_device()))
    assert farm.wait_for_devices(["bench-1"], 20.0) == []
    farm.submit([an_order("o1", launches=(0, 1))])
    assert agent.wait(Order) == [an_order("o1", launches=(0, 1))]
    agent.say(Heartbeat("o1"))
    revision = farm.progress("c@1").revision
    agent.say(an_attempt("o1", 0))
    agent.say(an_attempt("o1", 1))
    agent.say(OrderEnded("o1"))
    assert agent.wait(Ack, 2) == [Ack("o1", 0), Ack("o1", 1)]
    assert farm.progress("c@1", revision, 20.0).orders[0].attempts == (an_attempt("o1", 0), an_attempt("o1", 1))
    farm.submit([an_order("o2")])
    agent.wait(Order, 2)
    farm.cancel("c@1", ["o2"])
    assert agent.wait(Cancel) == [Cancel("o2")]


def test_the_life_of_a_deployment(farm: Farm, agent: FakeAgent) -> None:
    agent.attach(a_hello())
    agent.wait(Welcome)
    (ordered,) = farm.deploy([a_deployment()])
    (sent,) = agent.wait(Deployment)
    assert agent.fetch(digest_bytes(MODEL_BYTES)) == (MODEL_BYTES, len(MODEL_BYTES))
    status = DeploymentStatus(sent.id, "bench-1", "m", 1, DeploymentState.COMMITTED, path="/current/model.onnx")
    agent.say(status)
    assert farm.wait_for_deployments([ordered.id], 20.0) == [status]


def test_a_newer_session_supersedes_the_older(farm: Farm, server: Server, agent: FakeAgent) -> None:
    agent.attach(a_hello())
    agent.wait(Welcome)
    with FakeAgent(server.address, session=agent.session) as newer:
        newer.attach(a_hello())
        newer.wait(Welcome)
        ended = agent.wait_closed()
        assert ended is not None
        assert code_of(ended) == ("FAILED_PRECONDITION", "busy")
        assert "superseded" in str(ended.details())  # type: ignore[attr-defined]
        farm.submit([an_order("o1")])
        newer.wait(Order)


def test_a_stream_that_breaks_is_a_lost_device_and_comes_back(farm: Farm, agent: FakeAgent) -> None:
    agent.attach(a_hello())
    agent.wait(Welcome)
    farm.submit([an_order("o1")])
    agent.wait(Order)
    agent.hang_up()
    # The device is lost once the server noticed: wait for what follows from it, not for a time.
    agent.attach(a_hello(open_orders=("o1", "stale")))
    assert agent.wait(Cancel) == [Cancel("stale")]
    assert farm.wait_for_devices(["bench-1"], 20.0) == []


@pytest.mark.parametrize("secret", ["", "wrong"])
def test_a_stranger_is_unauthenticated_everywhere(server: Server, secret: str) -> None:
    with FakeAgent(server.address, secret=secret) as stranger:
        stranger.attach(a_hello())
        ended = stranger.wait_closed()
        assert ended is not None
        assert code_of(ended) == ("UNAUTHENTICATED", "denied")
        for call in (lambda: stranger.stat(INPUTS), lambda: stranger.fetch(INPUTS), lambda: stranger.push(INPUTS, INPUT_BYTES)):
            with pytest.raises(grpc.RpcError) as failed:
                call()
            assert code_of(failed.value)[0] == "UNAUTHENTICATED"


def test_hello_comes_first(farm: Farm, agent: FakeAgent) -> None:
    agent.attach(None)
    agent.say(Heartbeat())
    ended = agent.wait_closed()
    assert ended is not None
    assert code_of(ended) == ("INVALID_ARGUMENT", "protocol")


def test_a_bad_message_does_not_end_the_stream(farm: Farm, agent: FakeAgent) -> None:
    agent.attach(a_hello())
    agent.wait(Welcome)
    agent.say(a_hello())
    farm.submit([an_order("o1")])
    assert [order.id for order in agent.wait(Order)] == ["o1"]


# Bytes


def working(farm: Farm, agent: FakeAgent, limit: int = 2**20) -> None:
    agent.attach(a_hello())
    farm.submit([an_accuracy_order(limit=limit)])
    agent.wait(Order)


def test_fetching_resumes_anywhere(farm: Farm, agent: FakeAgent) -> None:
    agent.attach(a_hello())
    agent.wait(Welcome)
    farm.put(BIG)
    farm.deploy([a_deployment(payload=BIG)])
    sizes: list[int] = []
    assert agent.fetch(BIG_DIGEST, each=lambda data: sizes.append(len(data))) == (BIG, len(BIG))
    assert max(sizes) <= 2**20
    for offset in (1, 3 * 2**20 + 7, len(BIG)):
        assert agent.fetch(BIG_DIGEST, offset) == (BIG[offset:], len(BIG))
    with pytest.raises(grpc.RpcError) as beyond:
        agent.fetch(BIG_DIGEST, len(BIG) + 1)
    assert code_of(beyond.value) == ("INVALID_ARGUMENT", "protocol")
    assert agent.stat(BIG_DIGEST) == (True, len(BIG))


def test_an_empty_artifact_has_one_empty_chunk(farm: Farm, agent: FakeAgent) -> None:
    agent.attach(a_hello())
    agent.wait(Welcome)
    farm.put(b"")
    farm.deploy([a_deployment(payload=b"")])
    sizes: list[int] = []
    assert agent.fetch(digest_bytes(b""), each=lambda data: sizes.append(len(data))) == (b"", 0)
    assert sizes == [0]


def test_a_fetch_that_is_given_up_does_no_harm(farm: Farm, agent: FakeAgent) -> None:
    agent.attach(a_hello())
    agent.wait(Welcome)
    farm.put(BIG)
    farm.deploy([a_deployment(payload=BIG)])

    class GivenUp(Exception):
        pass

    def give_up(_: bytes) -> None:
        raise GivenUp

    for _ in range(10):
        with pytest.raises(GivenUp):
            agent.fetch(BIG_DIGEST, each=give_up)
    assert agent.fetch(BIG_DIGEST) == (BIG, len(BIG))


def test_rights_end_where_the_orders_end(farm: Farm, agent: FakeAgent) -> None:
    agent.attach(a_hello())
    agent.wait(Welcome)
    for call in (lambda: agent.fetch(INPUTS), lambda: agent.stat(INPUTS), lambda: agent.push(INPUTS, INPUT_BYTES)):
        with pytest.raises(grpc.RpcError) as failed:
            call()
        assert code_of(failed.value) == ("PERMISSION_DENIED", "denied")
    working(farm, agent)
    assert agent.fetch(INPUTS) == (INPUT_BYTES, len(INPUT_BYTES))
    with pytest.raises(grpc.RpcError) as failed:
        agent.fetch(digest_bytes(b"something else"))
    assert code_of(failed.value) == ("PERMISSION_DENIED", "denied")
    with pytest.raises(grpc.RpcError) as failed:
        agent.fetch("sha256:../../store.db")
    assert code_of(failed.value) == ("INVALID_ARGUMENT", "protocol")


def test_a_promised_artifact_that_is_missing_is_not_found(farm: Farm, agent: FakeAgent) -> None:
    agent.attach(a_hello())
    agent.wait(Welcome)
    farm.deploy([a_deployment(payload=b"never put")])
    with pytest.raises(grpc.RpcError) as failed:
        agent.fetch(digest_bytes(b"never put"))
    assert code_of(failed.value) == ("NOT_FOUND", "not-found")


def test_pushing_resumes_and_happens_once(farm: Farm, agent: FakeAgent) -> None:
    working(farm, agent)
    assert agent.stat(BIG_DIGEST) == (False, 0)
    assert agent.push(BIG_DIGEST, BIG[: 2**20], total=len(BIG)) == (False, 2**20)
    assert agent.stat(BIG_DIGEST) == (False, 2**20)
    assert agent.push(BIG_DIGEST, BIG[5:], offset=5) == (False, 2**20)  # a wrong offset is answered with the right one
    assert agent.push(BIG_DIGEST, BIG[2**20 :], offset=2**20) == (True, len(BIG))
    assert agent.push(BIG_DIGEST, BIG) == (True, len(BIG))
    assert farm.get(BIG_DIGEST).read_bytes() == BIG
    assert agent.push(digest_bytes(b""), b"") == (True, 0)


def test_wrong_bytes_are_refused_and_forgotten(farm: Farm, agent: FakeAgent) -> None:
    working(farm, agent)
    with pytest.raises(grpc.RpcError) as failed:
        agent.push(BIG_DIGEST, BIG[:-1] + b"!")
    assert code_of(failed.value) == ("DATA_LOSS", "digest-mismatch")
    assert agent.stat(BIG_DIGEST) == (False, 0)
    assert not farm.has(BIG_DIGEST)


def test_a_quota_bounds_what_is_pushed(farm: Farm, agent: FakeAgent) -> None:
    working(farm, agent, limit=0)
    huge = 64 * 2**20 + 1
    with pytest.raises(grpc.RpcError) as failed:
        agent.push(BIG_DIGEST, b"x", total=huge)
    assert code_of(failed.value) == ("RESOURCE_EXHAUSTED", "quota")
    with pytest.raises(grpc.RpcError) as failed:
        agent.push(BIG_DIGEST, BIG, total=1000)
    assert code_of(failed.value) == ("RESOURCE_EXHAUSTED", "quota")
    # What did not arrive was given back.
    assert agent.push(BIG_DIGEST, b"", total=64 * 2**20) == (False, 0)
    assert agent.push(BIG_DIGEST, BIG) == (True, len(BIG))


def test_the_same_bytes_pushed_by_many_at_once(farm: Farm, server: Server, agent: FakeAgent) -> None:
    working(farm, agent, limit=100 * 2**20)
    results: list[tuple[bool, int]] = []
    pushers = [threading.Thread(target=lambda: results.append(agent.push(BIG_DIGEST, BIG))) for _ in range(8)]
    for pusher in pushers:
        pusher.start()
    for pusher in pushers:
        pusher.join()
    assert results == [(True, len(BIG))] * 8


# The server itself


def test_an_address_in_use_is_said(farm: Farm) -> None:
    first = Server(farm, "127.0.0.1:0")
    address = first.start()
    assert address.startswith("127.0.0.1:")
    second = Server(farm, address)
    with pytest.raises(Busy, match=f"address {address}: in use"):
        second.start()
    second.stop()
    first.stop()
    first.stop()


def test_stopping_ends_the_streams(farm: Farm, server: Server, agent: FakeAgent) -> None:
    agent.attach(a_hello())
    agent.wait(Welcome)
    server.stop()
    ended = agent.wait_closed()
    assert ended is not None
    assert [s.state for s in farm.devices()] == ["lost"]


def test_the_runtime_folder_is_private_and_short() -> None:
    folder = RuntimeFolder()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert len(folder.address.removeprefix("unix:")) < 100
    folder.close()
    assert not folder.path.exists()
