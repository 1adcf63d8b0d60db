"""Enrolment, mutual TLS, renewal and shutting out, over real TLS on loopback."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controller.authority import Authority
from controller.client import Client
from controller.connection import Connection
from controller.serve import Serving
from edgefarm.credentials import load_identity, load_key, parse_token, proof_of_key
from edgefarm.digest import digest_bytes
from edgefarm.enrolment import enroll, renew
from edgefarm.errors import Busy, Denied, Unreachable, UserError
from edgefarm.model import Order, Welcome
from edgefarm.v1 import fleet_pb2, fleet_pb2_grpc
from tests.fakes.agent import code_of
from tests.fakes.certificates import a_key, write_authority
from tests.fakes.orders import INPUT_BYTES, INPUTS, a_device, a_hello, an_accuracy_order
from tests.integration.serving import agent_of, ended_as, enrolled, expired, join_address, main_address, plain_tls, serving, settings


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path / "controller") as made:
        yield made


# Joining


def test_a_device_joins_and_is_served(controller: Serving, tmp_path: Path) -> None:
    identity = enrolled(controller, tmp_path / "pi")
    assert (identity.kind, identity.name, identity.main) == ("device", "bench-1", main_address(controller))
    with agent_of(identity) as agent:
        agent.attach(a_hello())
        (welcome,) = agent.wait(Welcome)
        assert welcome.session == ""  # the certificate proves it
        assert welcome.unix_ms > identity.not_before_unix_ms
        assert controller.farm.wait_for_devices(["bench-1"], 20.0) == []
        controller.farm.submit([an_accuracy_order()])
        agent.wait(Order)
        assert agent.fetch(INPUTS) == (INPUT_BYTES, len(INPUT_BYTES))
        assert agent.push(digest_bytes(b"an output"), b"an output") == (True, 9)


def test_enrolling_again_changes_nothing(controller: Serving, tmp_path: Path) -> None:
    identity = enrolled(controller, tmp_path / "pi")
    unused = controller.registry.create_token("me")
    again = enroll(join_address(controller), unused, "bench-1", tmp_path / "pi")
    assert (again.key_pem, again.name) == (identity.key_pem, "bench-1")
    assert again == load_identity(tmp_path / "pi")
    with pytest.raises(UserError, match=r"is device 'bench-1' at .* already: remove the folder"):
        enroll(join_address(controller), unused, "bench-2", tmp_path / "pi")
    assert enroll(join_address(controller), unused, "bench-2", tmp_path / "pi-2").name == "bench-2"


def test_who_was_refused_for_good_comes_back_with_a_new_key(controller: Serving, tmp_path: Path) -> None:
    before = [
        enrolled(controller, tmp_path / "pi"),
        enroll(join_address(controller), controller.registry.add_user("ann", "admin"), "", tmp_path / "ann", "user"),
    ]
    controller.registry.revoke("bench-1")
    controller.registry.revoke_user("ann")
    with pytest.raises(UserError, match="not known here"):
        enroll(join_address(controller), str(replace(parse_token(controller.registry.create_token("me")), secret="x")), "", tmp_path / "pi")
    after = [
        enroll(join_address(controller), controller.registry.replace("bench-1"), "bench-1", tmp_path / "pi"),
        enroll(join_address(controller), controller.registry.add_user("ann"), "", tmp_path / "ann", "user"),
    ]
    for old, new in zip(before, after):
        assert (old.kind, old.name) == (new.kind, new.name)
        assert old.key_pem != new.key_pem
        assert controller.registry.caller(new.certificate_pem.encode()).name == new.name


def test_a_controller_that_was_set_up_anew_is_said(tmp_path: Path) -> None:
    with serving(tmp_path / "first") as first:
        chosen = settings(join=join_address(first), main=main_address(first))
        enrolled(first, tmp_path / "pi")
    with (
        serving(tmp_path / "second", chosen),
        pytest.raises(UserError, match="of another authority than this token's: if the controller at"),
    ):
        enroll(chosen.join, f"edgefarm1.a.{'0' * 32}", "bench-1", tmp_path / "pi")


def test_a_token_for_the_other_kind_is_not_used_up(controller: Serving, tmp_path: Path) -> None:
    token = controller.registry.add_user("ann", "viewer")
    with pytest.raises(UserError, match="this token is for a user, not for a device: 'controller token create' makes one"):
        enroll(join_address(controller), token, "", tmp_path / "pi", "device")
    assert load_identity(tmp_path / "pi") is None
    assert enroll(join_address(controller), token, "", tmp_path / "ann", "user").name == "ann"


def test_an_answer_that_got_lost_is_asked_for_again(controller: Serving, tmp_path: Path) -> None:
    token = controller.registry.create_token("me")
    enroll(join_address(controller), token, "bench-1", tmp_path / "pi")
    (tmp_path / "pi" / "identity.json").unlink()  # the power went before it was written
    assert enroll(join_address(controller), token, "bench-1", tmp_path / "pi").name == "bench-1"


def test_tokens_that_are_used_expired_or_unknown(controller: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used, old = controller.registry.create_token("me"), controller.registry.create_token("me", expires_s=0.001)
    enroll(join_address(controller), used, "bench-1", tmp_path / "1")
    unknown = str(replace(parse_token(used), secret="guessed"))
    for token, message in ((used, "used already"), (old, "has expired"), (unknown, "not known here")):
        with pytest.raises(UserError, match=message):
            enroll(join_address(controller), token, "bench-2", tmp_path / "2")
    assert load_identity(tmp_path / "2") is None


def test_nothing_is_sent_to_another_controller(controller: Serving, tmp_path: Path) -> None:
    token = parse_token(controller.registry.create_token("me"))
    with pytest.raises(UserError, match="nothing was sent"):
        enroll(join_address(controller), str(replace(token, fingerprint="0" * 32)), "bench-1", tmp_path / "pi")
    assert not (tmp_path / "pi").exists()
    assert controller.registry.members() == []


def test_who_shows_the_right_chain_without_its_key_gets_nothing(controller: Serving, tmp_path: Path) -> None:
    """A machine in the middle can repeat the authority's certificate, but has no certificate of it for a key of its own."""
    own = Authority(tmp_path / "own")
    key, chain = own.server([])
    heard: list[str] = []
    fake = grpc.server(ThreadPoolExecutor(1))

    class Greedy(fleet_pb2_grpc.FleetServicer):
        def Enroll(self, request: Any, context: Any) -> Any:
            heard.append(request.token)
            return fleet_pb2.EnrollReply()

    fleet_pb2_grpc.add_FleetServicer_to_server(Greedy(), fake)  # type: ignore[no-untyped-call]
    shown = chain + controller.registry.authority.certificate_pem
    port = fake.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, shown)]))
    fake.start()
    try:
        with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
            enroll(f"127.0.0.1:{port}", controller.registry.create_token("me"), "bench-1", tmp_path / "pi")
    finally:
        fake.stop(None).wait()
    assert heard == []


def test_the_wrong_one_of_two_ports_is_said(controller: Serving, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"is this its join port\? The next one serves those who have joined"):
        enroll(main_address(controller), controller.registry.create_token("me"), "bench-1", tmp_path / "pi")


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and not listening
        with pytest.raises(Unreachable, match="is it running"):
            enroll(f"127.0.0.1:{bound.getsockname()[1]}", f"edgefarm1.a.{'0' * 32}", "bench-1", tmp_path / "pi")


# Renewal


def test_an_expired_certificate_is_refused_and_renews(tmp_path: Path) -> None:
    with serving(tmp_path / "controller", settings(days=30)) as controller:
        folder = tmp_path / "pi"
        identity = expired(controller, enrolled(controller, folder), folder)
        with agent_of(identity) as agent:
            agent.attach(a_hello())
            assert ended_as(agent)[0] == "UNAVAILABLE"
        renewed = renew(folder)
        assert renewed.identity == load_identity(folder)
        assert renewed.unix_ms > identity.not_after_unix_ms
        with agent_of(renewed.identity) as agent:
            agent.attach(a_hello())
            agent.wait(Welcome)


def test_a_certificate_that_ends_while_it_is_used_is_told(controller: Serving, tmp_path: Path) -> None:
    identity = enroll(join_address(controller), controller.registry.add_user("ann"), "", tmp_path / "ann", "user")
    old = expired(controller, identity, tmp_path / "ann")
    told = r"the certificate of 'ann' has ended since this command began; .* run the same command"
    with contextlib.closing(Connection(old.main, old, patience_s=0.1)) as connection, pytest.raises(Unreachable, match=told):
        Client(connection, tmp_path / "cache").devices()
    fresh = renew(tmp_path / "ann").identity
    with contextlib.closing(Connection(fresh.main, fresh)) as connection:
        assert Client(connection, tmp_path / "cache").devices() == []


def test_who_is_shut_out_does_not_renew(controller: Serving, tmp_path: Path) -> None:
    enrolled(controller, tmp_path / "pi")
    controller.registry.revoke("bench-1")
    with pytest.raises(Denied, match="'bench-1' is revoked"):
        renew(tmp_path / "pi")


def test_a_renewal_needs_the_key_and_this_calls_nonce(controller: Serving, tmp_path: Path) -> None:
    identity = enrolled(controller, tmp_path / "pi")
    key = serialization.load_pem_private_key(load_key(tmp_path / "pi").encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    certificate = identity.certificate_pem

    def answer(prove: Any) -> tuple[str, str]:
        nonces: list[bytes] = []

        def steps() -> Iterator[Any]:
            yield fleet_pb2.RenewRequest(certificate_pem=certificate)
            while not nonces:
                heard.wait(0.01)
            yield fleet_pb2.RenewRequest(signature=prove(nonces[0]))

        heard = threading.Event()
        with plain_tls(join_address(controller), controller) as channel:
            call = fleet_pb2_grpc.FleetStub(channel).Renew(steps(), timeout=20)  # type: ignore[no-untyped-call]
            nonces.append(next(call).nonce)
            heard.set()
            try:
                return ("OK", next(call).certificate_pem[:10])
            except grpc.RpcError as error:
                return code_of(error)

    seen: list[bytes] = []

    def right(nonce: bytes) -> bytes:
        seen.append(key.sign(proof_of_key(nonce, certificate.encode()), ec.ECDSA(hashes.SHA256())))
        return seen[0]

    assert answer(right)[0] == "OK"
    assert answer(right) == ("PERMISSION_DENIED", "denied")  # the first proof, repeated
    assert answer(lambda nonce: b"") == ("PERMISSION_DENIED", "denied")
    assert (
        answer(lambda nonce: a_key().sign(proof_of_key(nonce, certificate.encode()), ec.ECDSA(hashes.SHA256())))[0] == "PERMISSION_DENIED"
    )


# The controller


def test_a_restart_keeps_authority_devices_and_who_is_out(tmp_path: Path) -> None:
    with serving(tmp_path / "controller") as first:
        chosen = settings(join=join_address(first), main=main_address(first))
        identities = [enrolled(first, tmp_path / name, name) for name in ("a", "b", "c")]
        first.registry.revoke("c")
    with serving(tmp_path / "controller", chosen) as second:
        agents = [agent_of(i) for i in identities]
        for index, agent in enumerate(agents):
            agent.attach(a_hello(a_device(agent.device, f"host-{index}")))
        assert second.farm.wait_for_devices(["a", "b"], 20.0) == []
        assert ended_as(agents[2])[0] == "UNAUTHENTICATED"
        assert {s.device.name: s.state for s in second.farm.devices()} == {"a": "ready", "b": "ready", "c": "lost"}
        for agent in agents:
            agent.__exit__()


def test_the_users_own_authority_signs_the_controllers(tmp_path: Path) -> None:
    above = write_authority(tmp_path)
    with serving(tmp_path / "controller", settings(authority=above)) as controller:
        with agent_of(enrolled(controller, tmp_path / "pi")) as agent:
            agent.attach(a_hello())
            agent.wait(Welcome)
        # Programs of the company believe the controller too, under its real name.
        assert shown_to(ssl.create_default_context(cafile=str(above[0])), controller)


def test_strict_programs_believe_the_controller(controller: Serving) -> None:
    context = ssl.create_default_context(cadata=controller.registry.authority.certificate_pem.decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # what newer versions of Python ask for by default
    assert shown_to(context, controller)


def shown_to(context: ssl.SSLContext, controller: Serving) -> object:
    host, _, port = join_address(controller).partition(":")
    with socket.create_connection((host, int(port))) as raw, context.wrap_socket(raw, server_hostname=host) as connection:
        return connection.getpeercert()


def test_a_state_folder_has_one_controller(controller: Serving, tmp_path: Path) -> None:
    with pytest.raises(Busy, match="driven by another command already"), Serving(tmp_path / "controller", settings()):
        pass


def test_a_port_in_use_is_said(controller: Serving, tmp_path: Path) -> None:
    for taken in (settings(join=join_address(controller)), settings(main=main_address(controller))):
        with pytest.raises(Busy, match="in use"), Serving(tmp_path / "second", taken):
            pass


def test_what_else_listens_starts_last_and_ends_first(tmp_path: Path) -> None:
    events: list[str] = []

    class Page:
        def start(self) -> None:
            events.append("start")

        def stop(self) -> None:
            events.append(f"stop, {len(made.farm.devices())} devices")

    with Serving(tmp_path / "controller", settings(), [lambda farm, registry: Page()]) as made:
        assert events == ["start"]
    assert events == ["start", "stop, 0 devices"]
