"""The HTTP pages: who may read them, where they may listen; and which devices service discovery names."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controller import discovery
from controller.authority import Authority
from edgefarm.credentials import DEVICE_SERVER_NAME
from edgefarm.errors import Busy, UserError
from edgefarm.model import Device, DeviceStatus
from edgefarm.pages import MOST_CLIENTS, PageServer, is_loopback, mutual_tls, parse_address, users_only

PAGES = {"/metrics": lambda: ("text/plain", b"up 1\n")}


def read(url: str, path: str, context: ssl.SSLContext | None = None) -> tuple[int, bytes]:
    host = url.partition("://")[2]
    kind = http.client.HTTPConnection if context is None else Named
    connection = kind(host, timeout=20, **({} if context is None else {"context": context}))
    with contextlib.closing(connection):
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read()


class Named(http.client.HTTPSConnection):
    """Expects a device's name rather than an address, as `server_name` in Prometheus' configuration does."""

    def connect(self) -> None:
        raw = socket.create_connection((self.host, self.port), self.timeout)
        self.sock = self._context.wrap_socket(raw, server_hostname=DEVICE_SERVER_NAME)  # type: ignore[attr-defined]


@pytest.fixture
def serve() -> Iterator[Callable[..., PageServer]]:
    with contextlib.ExitStack() as held:

        def start(address: str = "127.0.0.1:0", **more: object) -> PageServer:
            server = PageServer(address, {**PAGES, "/broken": broken}, "--metrics", **more)  # type: ignore[arg-type]
            held.callback(server.stop)
            server.start()
            return server

        yield start


def broken() -> tuple[str, bytes]:
    raise ValueError("a bug")


def test_pages_by_path(serve: Callable[..., PageServer], caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    assert read(server.url, "/metrics?x=1") == (200, b"up 1\n")
    assert read(server.url, "/") == (404, b"here are: /broken /metrics\n")
    assert read(server.url, "/broken")[0] == 500
    assert "a bug" in caplog.text


def test_ipv6(serve: Callable[..., PageServer]) -> None:
    server = serve("[::1]:0")
    assert server.url.startswith("http://[::1]:")
    assert read(server.url, "/metrics")[0] == 200


def test_a_taken_port_and_a_wrong_address(serve: Callable[..., PageServer]) -> None:
    taken = serve().url.partition("://")[2]
    with pytest.raises(Busy, match=f"--metrics {taken}: Address already in use"):
        PageServer(taken, PAGES, "--metrics")
    with pytest.raises(UserError, match=r"--metrics no\.such\.host\.invalid:1: "):
        PageServer("no.such.host.invalid:1", PAGES, "--metrics")


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_plain_text_stays_on_this_machine(address: str) -> None:
    with pytest.raises(UserError, match="plain text stays on this machine"):
        PageServer(address, PAGES, "--metrics")


def test_a_silent_client_keeps_nobody_waiting(serve: Callable[..., PageServer], tmp_path: Path) -> None:
    ours = Pki(tmp_path)
    server = serve("0.0.0.0:0", tls=ours.server)
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)):
        assert read(f"https://127.0.0.1:{port}", "/metrics", ours.client("user", "eve"))[0] == 200


def test_it_serves_so_many_clients_and_no_more(serve: Callable[..., PageServer]) -> None:
    server = serve()
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    with contextlib.ExitStack() as held:
        for _ in range(MOST_CLIENTS):
            held.enter_context(socket.create_connection((host, int(port)))).sendall(b"GET /metrics HTTP/1.0\r\n")  # and never an end
        with pytest.raises(ConnectionError):
            read(server.url, "/metrics")
    while True:  # those that hung up give their places back
        with contextlib.suppress(ConnectionError):
            assert read(server.url, "/metrics")[0] == 200
            break


class Pki:
    """Certificates of one authority, as contexts."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)

    def member(self, kind: str, name: str) -> tuple[str, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        certificate = self.authority.member(key.public_key(), kind, name, timedelta(days=1), datetime.now(timezone.utc))
        return pem.decode(), certificate.decode()

    def server(self) -> ssl.SSLContext:
        key, certificate = self.member("device", "pi")
        return mutual_tls(certificate, key, self.authority.certificate_pem.decode())

    def client(self, kind: str = "", name: str = "") -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.authority.certificate_pem.decode())
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if kind:
            with tempfile.NamedTemporaryFile("w") as file:
                file.write("".join(self.member(kind, name)))
                file.flush()
                context.load_cert_chain(file.name)
        return context


def test_off_loopback_only_users_with_a_certificate_may_read(serve: Callable[..., PageServer], tmp_path: Path) -> None:
    ours, other = Pki(tmp_path / "ours"), Pki(tmp_path / "other")
    server = serve("0.0.0.0:0", tls=ours.server, admit=users_only)
    assert server.url.startswith(f"https://{socket.gethostname()}:")
    url = f"https://127.0.0.1:{server.url.rpartition(':')[2]}"
    assert read(url, "/metrics", ours.client("user", "prometheus")) == (200, b"up 1\n")
    status, content = read(url, "/metrics", ours.client("device", "neighbour"))
    assert (status, b"only a user's certificate" in content) == (403, True)
    refused = (ssl.SSLError, ConnectionError)
    with pytest.raises(refused):
        read(url, "/metrics", ours.client())
    stranger = ours.client()
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("".join(other.member("user", "prometheus")))
        file.flush()
        stranger.load_cert_chain(file.name)
    with pytest.raises(refused):
        read(url, "/metrics", stranger)
    with pytest.raises(ssl.SSLCertVerificationError):  # nor does a reader believe another farm's device
        read(url, "/metrics", other.client("user", "prometheus"))
    with pytest.raises(refused):
        read(url.replace("https", "http"), "/metrics")


@pytest.mark.parametrize(
    ("address", "parsed"),
    [("127.0.0.1:9100", ("127.0.0.1", 9100)), (":0", ("127.0.0.1", 0)), ("[::1]:80", ("::1", 80)), ("pi:1", ("pi", 1))],
)
def test_addresses(address: str, parsed: tuple[str, int]) -> None:
    assert parse_address(address, "--metrics") == parsed
    assert is_loopback(parsed[0]) == (parsed[0] != "pi")


@pytest.mark.parametrize("address", ["9100", "host:", "host:x", "host:70000"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UserError, match=f"--metrics {address}: expected HOST:PORT"):
        parse_address(address, "--metrics")


def status(name: str, state: str = "ready", address: str = "http://10.0.0.7:9477/metrics", **labels: str) -> DeviceStatus:
    return DeviceStatus(Device(name, name, "host", labels, metrics_address=address), "class", state)


def test_discovery_names_direct_devices_that_are_attached() -> None:
    statuses = [
        status("pi", metrics="direct"),
        status("nano", "busy", "https://[fe80::1]:9477/metrics", metrics="direct"),
        status("relayed"),
        status("lost", "lost", metrics="direct"),
        status("silent", address="", metrics="direct"),
        *(
            status(f"odd{n}", address=a, metrics="direct")
            for n, a in enumerate(["ftp://x:1/", "http://x/", "http://x:99999/", "http://u@x:1/"])
        ),
    ]
    assert json.loads(discovery.targets(statuses, lambda device: device.labels)) == [
        {"targets": ["10.0.0.7:9477"], "labels": {"device": "pi", "__scheme__": "http", "__metrics_path__": "/metrics"}},
        {"targets": ["[fe80::1]:9477"], "labels": {"device": "nano", "__scheme__": "https", "__metrics_path__": "/metrics"}},
    ]
    assert json.loads(discovery.targets(statuses, lambda device: {})) == []
