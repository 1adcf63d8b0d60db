"""Who is revoked is cut within five seconds: real processes, TLS, a stream open and a transfer on its way over a slow link."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from controller.client import Client
from controller.connection import Connection
from controller.login import connected
from edgefarm.digest import digest_bytes
from edgefarm.enrolment import enroll
from edgefarm.errors import Denied
from edgefarm.model import DeviceStatus
from tests.fakes.orders import a_deployment
from tests.integration.serving import EnrolledAgent, ServeProcess

PROMISED_S = 5.0
UNDERWAY_BYTES = 8 * 2**20


class FakeSlowLink:
    """A port that leads to another one, at some MiB/s. `underway` is set once a good part has passed."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.underway, self._closed, self.carried = threading.Event(), threading.Event(), 0
        self._sockets: list[socket.socket] = [self._listener]

    def lead_to(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        threading.Thread(target=self._accept, args=((host, int(port)),), daemon=True).start()

    def _accept(self, target: tuple[str, int]) -> None:
        with suppress(OSError):
            while True:
                near, far = self._listener.accept()[0], socket.create_connection(target)
                self._sockets += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(2**17):
                sink.sendall(data)
                self.carried += len(data)
                if self.carried > UNDERWAY_BYTES:
                    self.underway.set()
                self._closed.wait(len(data) / (16 * 2**20))
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closed.set()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.fixture(scope="module")
def big() -> bytes:
    return os.urandom(2**20) * 128


@pytest.fixture
def link() -> Iterator[FakeSlowLink]:
    with closing(FakeSlowLink()) as made:
        yield made


@pytest.fixture
def served(tmp_path: Path, link: FakeSlowLink) -> Iterator[ServeProcess]:
    config = tmp_path / "controller.yaml"
    config.write_text(f"listen: 127.0.0.1:0\nadvertise: {link.address}\n")
    with ServeProcess(tmp_path / "state", "--config", str(config)) as made:
        link.lead_to(made.main)
        yield made


@pytest.fixture
def admin(served: ServeProcess, tmp_path: Path) -> Iterator[Client]:
    with connected(served.socket, tmp_path / "fetched", 20.0) as client:
        yield client


def only_device(admin: Client, ready: Callable[[DeviceStatus], bool]) -> DeviceStatus:
    """Once it is as wished."""
    pause = threading.Event()
    for _ in range(1200):
        found = [d for d in admin.devices() if ready(d)]
        if found:
            return found[0]
        pause.wait(0.05)
    raise AssertionError(admin.devices())


def test_a_device(served: ServeProcess, link: FakeSlowLink, admin: Client, tmp_path: Path, big: bytes) -> None:
    enroll(served.join, admin.create_token(1, 60.0, {}), "bench-1", tmp_path / "pi" / "identity", "device")
    admin.put(big)
    with EnrolledAgent(tmp_path / "pi") as agent:
        only_device(admin, lambda d: d.state == "ready")
        admin.deploy([a_deployment(payload=big)])
        assert link.underway.wait(60), agent.output
        assert agent.process.poll() is None
        admin.revoke("bench-1")
        agent.process.wait(PROMISED_S)
        assert "is revoked" in agent.output
        assert link.carried < len(big)
        assert only_device(admin, lambda d: d.state == "lost").reason.startswith("device 'bench-1' is revoked")
    told = agent.output.count("is revoked")
    with EnrolledAgent(tmp_path / "pi") as agent:  # as its service manager starts it again
        assert agent.process.wait(60) != 0
        assert agent.output.count("is revoked") > told


def test_a_user(served: ServeProcess, link: FakeSlowLink, admin: Client, tmp_path: Path, big: bytes) -> None:
    identity = enroll(served.join, admin.add_user("ann", "operator"), "", tmp_path / "ann", "user")
    run = admin.open_run("c", "spec", "{}", "", {}).name
    revision = admin.progress(run).revision
    ended: dict[str, BaseException | None] = {}

    def until_it_ends(name: str, call: Callable[[], object]) -> None:
        try:
            call()
            ended[name] = None
        except Denied as error:
            ended[name] = error

    with closing(Connection(identity.main, identity, patience_s=60.0)) as connection:
        client = Client(connection, tmp_path / "cache")
        calls: dict[str, Callable[[], object]] = {
            "waiting for news": lambda: client.progress(run, revision, 60.0),
            "sending": lambda: client.put(big),
        }
        threads = [threading.Thread(target=until_it_ends, args=item, daemon=True) for item in calls.items()]
        for thread in threads:
            thread.start()
        assert link.underway.wait(60), ended
        assert ended == {}
        admin.revoke_user("ann")
        for thread in threads:
            thread.join(PROMISED_S)
        assert {name: "'ann' is revoked" in str(error) for name, error in ended.items()} == dict.fromkeys(calls, True)
    assert link.carried < len(big)
    assert not admin.has(digest_bytes(big))
