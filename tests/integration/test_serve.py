"""`controller serve` as a process."""

from __future__ import annotations

import signal
import socket
import stat
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from controller.login import connected
from edgefarm.enrolment import enroll
from edgefarm.model import DeviceStatus
from tests.e2e.command import controller
from tests.integration.serving import EnrolledAgent, ServeProcess


def token(served: ServeProcess, *arguments: str) -> str:
    done = controller("token", "create", "--controller", served.socket, *arguments, cwd=served.log.parent)
    return next(word for word in done.stdout.split() if word.startswith("edgefarm1."))


def status_of(served: ServeProcess, folder: Path, *states: str) -> DeviceStatus:
    """Of the only device, once it is in one of `states`."""
    with connected(served.socket, folder, 20.0) as client:
        deadline, pause = time.monotonic() + 60, threading.Event()
        while not (found := [d for d in client.devices() if d.state in states]):
            assert time.monotonic() < deadline, client.devices()
            pause.wait(0.05)
        return found[0]


def test_a_device_stays_with_it_over_a_restart(tmp_path: Path) -> None:
    with ServeProcess(tmp_path / "state") as first:
        enroll(first.join, token(first, "--label", "site=lab"), "pi", tmp_path / "pi" / "identity")
        with EnrolledAgent(tmp_path / "pi") as agent:
            assert status_of(first, tmp_path / "fetched", "ready").device.labels["site"] == "lab"
            assert first.terminate() == 0
            with ServeProcess(tmp_path / "state") as second:  # any ports that are free: those that devices know
                assert (second.join, second.main) == (first.join, first.main)
                assert status_of(second, tmp_path / "fetched", "ready").device.labels["site"] == "lab"
                assert agent.process.poll() is None
                assert second.terminate() == 0


def test_a_device_finds_another_main_port_at_the_join_port(tmp_path: Path) -> None:
    with ServeProcess(tmp_path / "state") as first:
        enroll(first.join, token(first), "pi", tmp_path / "pi" / "identity")
        with EnrolledAgent(tmp_path / "pi") as agent:
            status_of(first, tmp_path / "fetched", "ready")
            assert first.terminate() == 0
            config = tmp_path / "controller.yaml"
            with socket.create_server(("127.0.0.1", 0)) as free:
                config.write_text(f"listen: {first.join}\nmain: 127.0.0.1:{free.getsockname()[1]}\n")
            with ServeProcess(tmp_path / "state", "--config", str(config)) as second:
                assert (second.join, second.main != first.main) == (first.join, True)
                status_of(second, tmp_path / "fetched", "ready")
                assert agent.process.poll() is None
                assert f"the main address was {first.main} and is {second.main}" in second.log.read_text()


def test_a_port_that_devices_know_and_somebody_took_is_said(tmp_path: Path) -> None:
    with ServeProcess(tmp_path / "state") as first:
        assert first.terminate() == 0
    host, _, port = first.join.rpartition(":")
    with socket.create_server((host, int(port))):
        done = controller("serve", "--state", str(tmp_path / "state"), "--listen", "127.0.0.1:0", cwd=tmp_path)
    assert done.code == 2
    assert f"address {first.join}: in use" in done.stderr
    assert "devices know it: free it, or name another one: --listen" in done.stderr


def test_how_it_ends(tmp_path: Path) -> None:
    with ServeProcess(tmp_path / "state") as served:
        for path in (tmp_path / "state" / "private", tmp_path / "state" / "authority", tmp_path / "state" / "store.db"):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077
        busy = controller("serve", "--state", str(tmp_path / "state"), "--listen", "127.0.0.1:0", cwd=tmp_path)
        assert (busy.code, f"(process {served.process.pid})" in busy.stderr) == (2, True)
        assert served.terminate(signal.SIGINT) == 130
    assert "stopping" in served.log.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"), [(("--listen", "nonsense:x"), "HOST:PORT"), (("--config", "absent.yaml"), "no such file")]
)
def test_what_is_wrong_is_said(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = controller("serve", "--state", str(tmp_path / "state"), *arguments, cwd=tmp_path)
    assert (done.code, message in done.stderr) == (2, True), done.stderr


def test_a_path_that_is_too_long_for_a_socket_is_said(tmp_path: Path) -> None:
    done = controller("serve", "--state", str(tmp_path / ("x" * 90)), "--listen", "127.0.0.1:0", cwd=tmp_path)
    assert (done.code, "choose a shorter --state" in done.stderr) == (2, True)


def test_it_serves_metrics_if_asked_to(tmp_path: Path) -> None:
    with ServeProcess(tmp_path / "state", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0") as served:
        enroll(served.join, token(served), "pi", tmp_path / "pi" / "identity")
        with EnrolledAgent(tmp_path / "pi"):
            status_of(served, tmp_path / "fetched", "ready")
            page, deadline = "", time.monotonic() + 60
            while 'edgefarm_certificate_expiry_timestamp_seconds{device="pi"}' not in page:
                assert time.monotonic() < deadline, page
                with urllib.request.urlopen(f"{served.metrics}/metrics", timeout=20) as reply:
                    page = reply.read().decode()
        assert 'edgefarm_controller_certificate_expiry_timestamp_seconds{certificate="authority"}' in page
        assert served.terminate() == 0
    with ServeProcess(tmp_path / "other") as silent:
        assert not silent.metrics


def test_a_metrics_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        listen = ("--listen", "127.0.0.1:0", "--metrics", address)
        done = controller("serve", "--state", str(tmp_path / "state"), *listen, cwd=tmp_path)
    assert done.code == 2
    assert f"--metrics {address}: Address already in use" in done.stderr
