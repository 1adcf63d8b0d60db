"""A running controller for tests, with real TLS on loopback, and devices that enroll at it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controller.config.controller_file import ControllerSettings
from controller.serve import Serving
from edgefarm.channels import TLS_OPTIONS
from edgefarm.credentials import Identity, save_identity
from edgefarm.enrolment import enroll
from tests.fakes.agent import FakeAgent, code_of
from tests.fakes.orders import INPUT_BYTES, MODEL_BYTES

ANY_PORT = "127.0.0.1:0"


def settings(
    *, days: float = 30.0, authority: tuple[Path, Path] | None = None, join: str = ANY_PORT, main: str = ANY_PORT,
    metrics: str = "",
) -> ControllerSettings:  # fmt: skip
    return ControllerSettings(join, main, "", ("127.0.0.1",), authority, days * 86400, metrics)


@contextmanager
def serving(state: Path, chosen: ControllerSettings | None = None) -> Iterator[Serving]:
    """With a run and the bytes that orders of the tests name."""
    with Serving(state, chosen or settings()) as made:
        made.farm.open_run("c", "spec", "{}", "me", {})
        made.farm.put(MODEL_BYTES)
        made.farm.put(INPUT_BYTES)
        yield made


def join_address(controller: Serving) -> str:
    assert controller.server.doors is not None
    return controller.server.doors.join


def main_address(controller: Serving) -> str:
    assert controller.server.doors is not None
    return controller.server.doors.main


def enrolled(controller: Serving, folder: Path, name: str = "bench-1") -> Identity:
    return enroll(join_address(controller), controller.registry.create_token("me"), name, folder)


def agent_of(identity: Identity) -> FakeAgent:
    return FakeAgent(identity.main, identity.name, identity=identity)


def ended_as(agent: FakeAgent) -> tuple[str, str, str]:
    ended: Any = agent.wait_closed()
    assert ended is not None
    return (*code_of(ended), ended.details())


def plain_tls(address: str, controller: Serving) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(controller.registry.authority.certificate_pem)
    return grpc.secure_channel(address, credentials, options=list(TLS_OPTIONS))


def expired(controller: Serving, identity: Identity, folder: Path) -> Identity:
    """As if the device had been off for a month: the certificate in its folder ended yesterday."""
    key = serialization.load_pem_private_key(identity.key_pem.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    born, life = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(days=31), timedelta(days=30)
    pem = controller.registry.authority.member(key.public_key(), identity.kind, identity.name, life, born).decode()
    begin, end = (int(moment.timestamp() * 1000) for moment in (born, born + life))
    old = replace(identity, certificate_pem=pem, not_before_unix_ms=begin, not_after_unix_ms=end)
    save_identity(folder, old)
    return old


class EnrolledAgent:
    """A real `edge-agent run` of a device that has enrolled. Use it as a context manager: the process is gone afterwards.

    `within`: words of a command that becomes the one that follows them.
    """

    def __init__(
        self, state: Path, environment: Mapping[str, str] | None = None, arguments: Sequence[str] = (), within: Sequence[str] = ()
    ) -> None:
        self.log = state.with_suffix(".log")
        command = [*within, sys.executable, "-m", "agent.cli", "run", "--state", str(state), "--threads", "1", "--runtimes", "onnxruntime"]
        command += ["--measure-lock", str(state.with_suffix(".lock")), *arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(environment or {})}
            )

    def __enter__(self) -> EnrolledAgent:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def output(self) -> str:
        return self.log.read_text()


class ServeProcess:
    """A real `controller serve`. Use it as a context manager: the process is gone afterwards. `within`: as of `EnrolledAgent`."""

    def __init__(self, state: Path, *arguments: str, within: Sequence[str] = ()) -> None:
        self.log = state.with_suffix(".log")
        where = arguments or ("--listen", ANY_PORT)
        command = [*within, sys.executable, "-m", "controller.cli", "serve", "--state", str(state), "--json", *where]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        told = json.loads(line)
        self.join, self.main, self.socket = told["join"], told["main"], told["socket"]
        self.metrics = told.get("metrics", "")

    def __enter__(self) -> ServeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)
