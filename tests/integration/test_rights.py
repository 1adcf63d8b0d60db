"""Who may call what: every method of every service, over real TLS, by every kind of caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from controller.roles import ROLES
from controller.serve import Serving
from edgefarm.channels import open_channel
from edgefarm.credentials import Identity
from edgefarm.enrolment import enroll
from edgefarm.model import Order, Welcome
from edgefarm.v1 import artifacts_pb2, control_pb2, fleet_pb2
from tests.fakes.agent import code_of
from tests.fakes.orders import INPUTS, a_hello, an_accuracy_order
from tests.integration.serving import agent_of, enrolled, join_address, main_address, plain_tls, serving

# Least roles, as the interface promises them; written down here once more, so that a slip in the other table is seen.
READ = ["Runs", "Devices", "Progress", "Deployments", "WaitForDeployments", "Holds", "Waits"]
WORK = ["OpenRun", "UpdateRun", "Submit", "CancelOrders", "Retry", "CancelRun", "Deploy", "RollBack", "Drive", "Leave"]
KEEP = ["Lease", "Drain", "Release"]
RULE = ["CreateToken", "AddUser", "LabelDevice", "ReplaceDevice", "RevokeDevice", "Users", "RevokeUser"]
USERS = {
    **{f"Control.{name}": "viewer" for name in READ},
    **{f"Control.{name}": "operator" for name in WORK + KEEP},
    **{f"Control.{name}": "admin" for name in RULE},
    "Artifacts.Stat": "viewer",
    "Artifacts.Fetch": "viewer",
    "Artifacts.Push": "operator",
}
DEVICES = {"Fleet.Attach", "Artifacts.Stat", "Artifacts.Fetch", "Artifacts.Push"}
JOIN = {"Fleet.Enroll", "Fleet.Renew"}  # on a port of their own, where nothing else answers


def methods() -> Iterator[tuple[str, Callable[[grpc.Channel], object]]]:
    """Every method, and a call of it that asks for as little as there is."""
    for module in (fleet_pb2, artifacts_pb2, control_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield f"{service.name}.{method.name}", caller_of(f"/{service.full_name}/{method.name}", method)


def caller_of(path: str, method: Any) -> Callable[[grpc.Channel], object]:
    asked, answer = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    request = asked(digest=INPUTS) if "digest" in asked.DESCRIPTOR.fields_by_name else asked()
    sides = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"

    def call(channel: grpc.Channel) -> object:
        stub = getattr(channel, sides)(path, request_serializer=asked.SerializeToString, response_deserializer=answer.FromString)
        reply = stub(iter([request]) if method.client_streaming else request, timeout=30)
        return list(reply) if method.server_streaming else reply

    return call


def refused(channel: grpc.Channel) -> dict[str, set[str]]:
    """Methods by how they refused; those that did not refuse are under the empty name."""
    found: dict[str, set[str]] = {}
    for name, call in methods():
        found.setdefault(status_of(partial(call, channel)), set()).add(name)
    assert not {"INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"} & set(found), found
    return found


def status_of(call: Callable[[], object]) -> str:
    try:
        call()
    except grpc.RpcError as error:
        status, code = code_of(error)
        return status if code in ("", "denied") else ""  # it was heard, and found to ask for nonsense
    return ""


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path / "controller") as made:
        yield made


def a_user(controller: Serving, folder: Path, role: str) -> Identity:
    return enroll(join_address(controller), controller.registry.add_user(role, role), "", folder, "user")


def test_the_tables_here_name_every_method() -> None:
    assert {name for name, _ in methods()} == {*USERS, *DEVICES, *JOIN}


@pytest.mark.parametrize("role", ROLES)
def test_users(controller: Serving, tmp_path: Path, role: str) -> None:
    identity = a_user(controller, tmp_path / "user", role)
    with open_channel(identity.main, identity) as channel:
        found = refused(channel)
    may = {name for name, least in USERS.items() if ROLES.index(least) <= ROLES.index(role)}
    assert found == {"": may, "UNIMPLEMENTED": JOIN, "PERMISSION_DENIED": {*USERS, *DEVICES} - may}


def test_devices(controller: Serving, tmp_path: Path) -> None:
    identity = enrolled(controller, tmp_path / "pi")
    with open_channel(identity.main, identity) as channel:
        assert refused(channel) == {"": {"Fleet.Attach"}, "UNIMPLEMENTED": JOIN, "PERMISSION_DENIED": {*USERS}}, "it has no order"
        with agent_of(identity) as agent:
            agent.attach(a_hello())
            agent.wait(Welcome)
            controller.farm.submit([an_accuracy_order()])
            agent.wait(Order)
            assert refused(channel) == {"": DEVICES, "UNIMPLEMENTED": JOIN, "PERMISSION_DENIED": {*USERS} - DEVICES}


def test_those_who_were_shut_out(controller: Serving, tmp_path: Path) -> None:
    user, device = a_user(controller, tmp_path / "user", "admin"), enrolled(controller, tmp_path / "pi")
    with open_channel(user.main, user) as of_user, open_channel(device.main, device) as of_device:
        for channel in (of_user, of_device):
            grpc.channel_ready_future(channel).result(30)  # their connections stand, and outlive what follows
        controller.registry.revoke_user("admin")
        controller.registry.revoke("bench-1")
        for channel in (of_user, of_device):
            found = refused(channel)
            assert found.pop("UNIMPLEMENTED") == JOIN
            assert set(found) == {"UNAUTHENTICATED", "PERMISSION_DENIED"}
            assert found["UNAUTHENTICATED"] | found["PERMISSION_DENIED"] == {*USERS, *DEVICES}


def test_strangers(controller: Serving) -> None:
    everything = {*USERS, *DEVICES, *JOIN}
    with plain_tls(main_address(controller), controller) as channel:
        assert refused(channel) == {"UNAVAILABLE": everything}
    with plain_tls(join_address(controller), controller) as channel:
        assert refused(channel) == {"": JOIN, "UNIMPLEMENTED": everything - JOIN}
    for address in (main_address(controller), join_address(controller)):
        with open_channel(address) as channel:
            assert refused(channel) == {"UNAVAILABLE": everything}
