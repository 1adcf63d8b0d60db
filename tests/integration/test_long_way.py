"""Devices and users whose controller is far away: a connection takes seconds to make, and is not given up for that."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from agent.link import Credentials, Link
from controller.client import Client
from controller.connection import Connection
from edgefarm.enrolment import enroll
from edgefarm.model import FEATURES, PROTOCOL, ControllerBody, Device, Heartbeat, Hello, Welcome
from tests.integration.serving import enrolled, join_address, main_address, serving

DELAY_S = 0.75  # of each way; TCP, TLS and HTTP/2 need two round trips and more
ROOT = Path(__file__).parents[2]


@contextmanager
def long_way(target: str) -> Iterator[str]:
    """An address from which everything takes long to get to `target`."""
    command = [sys.executable, "-m", "tests.delaying", "127.0.0.1:0", target, str(DELAY_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as proxy:
        try:
            assert proxy.stdout is not None
            yield proxy.stdout.readline().strip()
        finally:
            proxy.kill()


def test_a_device_attaches(tmp_path: Path) -> None:
    welcomed = threading.Event()

    def receive(body: ControllerBody) -> None:
        if isinstance(body, Welcome):
            welcomed.set()

    with serving(tmp_path / "c") as controller, long_way(main_address(controller)) as address:
        identity = replace(enrolled(controller, tmp_path / "identity"), main=address)
        link = Link(
            address, Credentials(identity.name), hello=lambda: Hello(PROTOCOL, FEATURES, "i", Device(identity.name, "id", "host"), True),
            receive=receive, beat=lambda: Heartbeat("", 1, 2), identity=lambda: identity,
        )  # fmt: skip
        thread = threading.Thread(target=link.run)
        thread.start()
        try:
            assert welcomed.wait(30)
        finally:
            link.stop()
            thread.join(30)
        assert not thread.is_alive()


def test_a_try_that_is_given_up_for_another_is_no_refusal(tmp_path: Path) -> None:
    refusals: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        link = Link(
            f"127.0.0.1:{silent.getsockname()[1]}", Credentials("dev", "secret"), receive=lambda body: None,
            hello=lambda: Hello(PROTOCOL, FEATURES, "i", Device("dev", "id", "host"), True), beat=lambda: Heartbeat("", 1, 2),
            refused=lambda: refusals.append(1),
        )  # fmt: skip
        thread = threading.Thread(target=link.run)
        thread.start()
        tries = [silent.accept()[0]]
        link.hurry()
        tries.append(silent.accept()[0])
        link.stop()
        thread.join(30)
        for connection in tries:
            connection.close()
    assert not thread.is_alive()
    assert not refusals


def test_a_user_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path / "c") as controller, long_way(main_address(controller)) as address:
        token = controller.registry.add_user("anna", "operator")
        identity = enroll(join_address(controller), token, "", tmp_path / "identity")
        connection = Connection(address, identity, patience_s=30.0)
        try:
            assert list(Client(connection, tmp_path / "fetched").devices()) == []
        finally:
            connection.close()
