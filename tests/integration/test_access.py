"""Who gets what over real TLS: strangers nothing, each device its own, and who was shut out nothing any more."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.serve import Serving
from edgefarm.channels import open_channel
from edgefarm.digest import digest_bytes
from edgefarm.enrolment import enroll
from edgefarm.errors import UserError
from edgefarm.model import Deployment, Order, Welcome
from edgefarm.v1 import artifacts_pb2, artifacts_pb2_grpc, control_pb2, control_pb2_grpc, fleet_pb2, fleet_pb2_grpc
from tests.fakes.agent import code_of
from tests.fakes.orders import INPUT_BYTES, INPUTS, MODEL_BYTES, a_deployment, a_device, a_hello, an_accuracy_order, an_order
from tests.integration.serving import agent_of, ended_as, enrolled, join_address, main_address, plain_tls, serving


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path / "controller") as made:
        yield made


# Without a certificate


def everything(channel: grpc.Channel) -> Iterator[Any]:
    """One call of each method of each service, but those of the join port."""
    fleet, artifacts = fleet_pb2_grpc.FleetStub(channel), artifacts_pb2_grpc.ArtifactsStub(channel)  # type: ignore[no-untyped-call]
    yield lambda: list(fleet.Attach(iter([]), timeout=20))
    yield lambda: artifacts.Stat(artifacts_pb2.StatRequest(digest=INPUTS), timeout=20)
    yield lambda: list(artifacts.Fetch(artifacts_pb2.FetchRequest(digest=INPUTS), timeout=20))
    yield lambda: artifacts.Push(iter([]), timeout=20)
    service = control_pb2.DESCRIPTOR.services_by_name["Control"]
    stub = control_pb2_grpc.ControlStub(channel)  # type: ignore[no-untyped-call]
    for method in service.methods:
        request = getattr(control_pb2, method.input_type.name)()
        call = getattr(stub, method.name)
        yield (
            (lambda c=call, r=request: list(c(r, timeout=20))) if method.server_streaming else (lambda c=call, r=request: c(r, timeout=20))
        )


def test_the_join_port_knows_two_methods(controller: Serving) -> None:
    with plain_tls(join_address(controller), controller) as channel:
        count = 0
        for call in everything(channel):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert refused.value.details() == "Method not found!"
            count += 1
        assert count > 20
        with pytest.raises(grpc.RpcError) as refused:
            fleet_pb2_grpc.FleetStub(channel).Enroll(fleet_pb2.EnrollRequest(token="x"))  # type: ignore[no-untyped-call]
        assert code_of(refused.value) == ("INVALID_ARGUMENT", "protocol")  # a request is missing


def test_the_main_port_does_not_even_speak(controller: Serving) -> None:
    with plain_tls(main_address(controller), controller) as channel:
        for call in everything(channel):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_plain_text_is_not_understood(controller: Serving) -> None:
    for address in (join_address(controller), main_address(controller)):
        with open_channel(address) as channel:
            for call in list(everything(channel))[:3]:
                with pytest.raises(grpc.RpcError) as refused:
                    call()
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_of_another_authority_is_not_taken(controller: Serving, tmp_path: Path) -> None:
    with serving(tmp_path / "other") as other:
        stranger = enrolled(other, tmp_path / "stranger")
    trusting = controller.registry.authority.certificate_pem.decode()
    with agent_of(replace(stranger, main=main_address(controller), authority_pem=trusting)) as agent:
        agent.attach(a_hello())
        assert ended_as(agent)[0] == "UNAVAILABLE"


def test_a_members_certificate_does_not_make_a_controller(controller: Serving, tmp_path: Path) -> None:
    """Who holds a device's key can't pretend to be the controller to another one."""
    bad, good = enrolled(controller, tmp_path / "bad", "bad"), enrolled(controller, tmp_path / "good", "good")
    fake = grpc.server(ThreadPoolExecutor(1))
    pair = (bad.key_pem.encode(), bad.certificate_pem.encode())
    port = fake.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    fake.start()
    try:
        with agent_of(replace(good, main=f"127.0.0.1:{port}")) as agent:
            agent.attach(a_hello(a_device("good")))
            assert "Hostname Verification Check failed" in ended_as(agent)[2]
    finally:
        fake.stop(None).wait()


# Each for itself


def test_a_device_gets_only_what_it_was_ordered(controller: Serving, tmp_path: Path) -> None:
    first, second = (enrolled(controller, tmp_path / name, name) for name in ("a", "b"))
    with agent_of(first) as a, agent_of(second) as b:
        a.attach(a_hello(a_device("a", "host-a")))
        b.attach(a_hello(a_device("b", "host-b")))
        assert controller.farm.wait_for_devices(["a", "b"], 20.0) == []
        controller.farm.submit([an_order("o1", device="b")])
        b.wait(Order)
        assert b.fetch(digest_bytes(MODEL_BYTES))[0] == MODEL_BYTES
        for call in (lambda: a.fetch(digest_bytes(MODEL_BYTES)), lambda: a.stat(INPUTS), lambda: a.push(INPUTS, INPUT_BYTES)):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert code_of(refused.value) == ("PERMISSION_DENIED", "denied")
        # What it says about itself counts nothing: the certificate does.
        a.device = "b"
        with pytest.raises(grpc.RpcError) as refused:
            a.fetch(digest_bytes(MODEL_BYTES))
        assert code_of(refused.value) == ("PERMISSION_DENIED", "denied")
        a.attach(a_hello(a_device("b", "host-a")))
        assert ended_as(a)[:2] == ("INVALID_ARGUMENT", "protocol")


def test_a_device_is_no_user_and_a_user_no_device(controller: Serving, tmp_path: Path) -> None:
    device = enrolled(controller, tmp_path / "device")
    user = enroll(join_address(controller), controller.registry.add_user("ann", "viewer"), "", tmp_path / "user")
    assert (user.kind, user.name) == ("user", "ann")
    with open_channel(device.main, device) as channel, pytest.raises(grpc.RpcError) as refused:
        list(control_pb2_grpc.ControlStub(channel).Devices(control_pb2.DevicesRequest()))  # type: ignore[no-untyped-call]
    assert code_of(refused.value) == ("PERMISSION_DENIED", "denied")
    with agent_of(user) as agent:
        agent.attach(a_hello(a_device("ann")))
        assert ended_as(agent)[:2] == ("PERMISSION_DENIED", "denied")
    with open_channel(user.main, user) as channel:
        stub = control_pb2_grpc.ControlStub(channel)  # type: ignore[no-untyped-call]
        assert [list(part.devices) for part in stub.Devices(control_pb2.DevicesRequest())] == [[]]
        with pytest.raises(grpc.RpcError) as refused:
            stub.Submit(control_pb2.SubmitRequest())
        assert code_of(refused.value) == ("PERMISSION_DENIED", "denied")


# Shutting out


def test_a_revoked_device_is_cut_and_stays_out(controller: Serving, tmp_path: Path) -> None:
    identity = enrolled(controller, tmp_path / "pi")
    with agent_of(identity) as agent:
        agent.attach(a_hello())
        agent.wait(Welcome)
        controller.farm.submit([an_accuracy_order()])
        agent.wait(Order)
        controller.registry.revoke("bench-1")
        assert ended_as(agent)[:2] == ("PERMISSION_DENIED", "denied")
        for call in (lambda: agent.fetch(INPUTS), lambda: agent.stat(INPUTS), lambda: agent.push(INPUTS, INPUT_BYTES)):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert code_of(refused.value) == ("UNAUTHENTICATED", "denied")
        agent.attach(a_hello())
        assert ended_as(agent)[0] == "UNAUTHENTICATED"
    (status,) = controller.farm.devices()
    assert (status.state, "is revoked" in status.reason) == ("lost", True)


def test_a_revoked_device_gets_nothing_more_of_what_it_was_fetching(controller: Serving, tmp_path: Path) -> None:
    big = bytes(range(256)) * 4096 * 64  # 64 MiB: more than flow control lets through unread
    digest = controller.farm.put(big)
    identity = enrolled(controller, tmp_path / "pi")
    with agent_of(identity) as agent:
        agent.attach(a_hello())
        agent.wait(Welcome)
        controller.farm.deploy([a_deployment(payload=big)])
        agent.wait(Deployment)
        parts: list[int] = []

        def revoke(data: bytes) -> None:
            if not parts:
                controller.registry.revoke("bench-1")
            parts.append(len(data))

        with pytest.raises(grpc.RpcError) as refused:
            agent.fetch(digest, each=revoke)
        assert code_of(refused.value) == ("PERMISSION_DENIED", "denied")
        assert 0 < sum(parts) < len(big)


def test_one_key_on_two_machines_is_quarantined_by_name(controller: Serving, tmp_path: Path) -> None:
    identity = enrolled(controller, tmp_path / "pi")
    with agent_of(identity) as first, agent_of(identity) as copy:
        first.attach(a_hello(a_device(host="boot-1")))
        first.wait(Welcome)
        copy.attach(a_hello(a_device(host="boot-2"), "i2"))
        copy.wait(Welcome)
        assert ended_as(first)[:2] == ("FAILED_PRECONDITION", "busy")
        first.attach(a_hello(a_device(host="boot-1"), "i3"))
        why = ended_as(first)
        assert why[:2] == ("PERMISSION_DENIED", "denied")
        assert "'bench-1' is quarantined: two machines use its key in turns" in why[2]
        assert ended_as(copy)[:2] == ("PERMISSION_DENIED", "denied")
    (status,) = controller.farm.devices()
    assert status.reason.startswith("device 'bench-1' is quarantined: two machines")
    # Other hardware takes the name over, with a key of its own.
    token = controller.registry.replace("bench-1")
    with agent_of(enroll(join_address(controller), token, "bench-1", tmp_path / "new")) as agent:
        agent.attach(a_hello(a_device(host="boot-3"), "i4"))
        agent.wait(Welcome)


def test_one_key_under_two_names_is_quarantined(controller: Serving, tmp_path: Path) -> None:
    identity = enrolled(controller, tmp_path / "1", "one")
    shutil.copytree(tmp_path / "1", tmp_path / "2")  # the card was copied
    (tmp_path / "2" / "identity.json").unlink()
    with agent_of(identity) as agent:
        agent.attach(a_hello(a_device("one")))
        agent.wait(Welcome)
        with pytest.raises(UserError, match="its key belongs to the device 'one'"):
            enrolled(controller, tmp_path / "2", "two")
        assert ended_as(agent)[:2] == ("PERMISSION_DENIED", "denied")
    reasons = {s.device.name: s.reason for s in controller.farm.devices()}
    assert sorted(reasons) == ["one", "two"]
    assert all("'one' and 'two' showed the same key" in r for r in reasons.values())


def test_labels_of_token_and_user_are_on_top_of_the_devices_own(controller: Serving, tmp_path: Path) -> None:
    token = controller.registry.create_token("me", labels={"site": "lab", "board": "mine"})
    identity = enroll(join_address(controller), token, "bench-1", tmp_path / "pi")
    with agent_of(identity) as agent:
        agent.attach(a_hello(replace(a_device(), labels={"board": "found", "soc": "x"})))
        agent.wait(Welcome)
        assert controller.farm.devices()[0].device.labels == {"board": "mine", "soc": "x", "site": "lab"}
        controller.registry.label("bench-1", {"board": None, "desk": "4"})
        assert controller.farm.devices()[0].device.labels == {"board": "found", "soc": "x", "site": "lab", "desk": "4"}


def test_strangers_send_little(controller: Serving) -> None:
    with plain_tls(join_address(controller), controller) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            fleet_pb2_grpc.FleetStub(channel).Enroll(fleet_pb2.EnrollRequest(csr_pem="x" * 100_000))  # type: ignore[no-untyped-call]
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
