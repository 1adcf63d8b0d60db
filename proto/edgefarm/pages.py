"""A few pages over HTTP, for Prometheus: the standard library's server, on loopback, or with TLS on both sides."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from edgefarm.credentials import urn
from edgefarm.errors import Busy, Denied, UserError

_LOG = logging.getLogger(__name__)
Page = Callable[[], tuple[str, bytes]]  # () -> (content type, content)
MOST_CLIENTS = 16  # at a time
_REQUEST_S = 30.0  # of silence, after which a client is not waited for any longer


class PageServer:
    """Serves pages by their path from `start` to `stop`; port 0 takes a free one, `url` tells which.

    Args:
        address: `HOST:PORT`, `[V6]:PORT`, `:PORT` (loopback).
        pages: path -> page.
        option: what the user calls this address, for errors.
        tls: makes the context of a new connection, so that a renewed certificate is used at once. Used, and needed, off loopback only.
        admit: looks at the certificate of a client on TLS; raises Denied.

    Raises:
        UserError: the address is malformed, off loopback without TLS, or not of this machine.
        Busy: the port is taken.
    """

    def __init__(
        self, address: str, pages: Mapping[str, Page], option: str, *, tls: Callable[[], ssl.SSLContext] | None = None,
        admit: Callable[[ssl.SSLSocket], Any] = lambda _: None,
    ) -> None:  # fmt: skip
        host, port = parse_address(address, option)
        kind = _Server6 if ":" in host else _Server
        try:
            self._server = kind((host, port), _handler(pages, admit))
        except socket.gaierror as error:
            raise UserError(f"{option} {address}: {error.strerror}") from error
        except PermissionError as error:
            raise UserError(f"{option} {address}: {error.strerror}: take a port above 1023") from error
        except OSError as error:
            raise Busy(f"{option} {address}: {error.strerror}; take another port, or 0 for a free one") from error
        if not is_loopback(str(self._server.server_address[0])):
            if tls is None:
                self._server.server_close()
                raise UserError(
                    f"{option} {address}: plain text stays on this machine: take 127.0.0.1:{port}, or enroll to have a certificate"
                )
            self._server.tls = tls
        shown = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        self.url = f"{'https' if self._server.tls else 'http'}://{shown}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="pages", daemon=True)

    def start(self) -> None:
        """Answers from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Gives the port back."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    tls: Callable[[], ssl.SSLContext] | None = None

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._places = threading.BoundedSemaphore(MOST_CLIENTS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection; hangs up on what comes while all places are taken."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Gives the place back in the end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Runs in the connection's own thread, so that a slow handshake keeps nobody waiting."""
        request.settimeout(_REQUEST_S)
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        with self.tls().wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, or can't prove who it is, is no news."""


class _Server6(_Server):
    address_family = socket.AF_INET6


def _handler(pages: Mapping[str, Page], admit: Callable[[ssl.SSLSocket], Any]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version = "edgefarm"
        sys_version = ""

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            try:
                if isinstance(self.connection, ssl.SSLSocket):
                    admit(self.connection)
            except Denied as error:
                self._answer(403, "text/plain; charset=utf-8", f"{error}\n".encode())
                return
            if page is None:
                self._answer(404, "text/plain; charset=utf-8", f"here are: {' '.join(sorted(pages))}\n".encode())
                return
            try:
                content_type, content = page()
            except Exception:
                _LOG.exception("page %s", self.path)
                self._answer(500, "text/plain; charset=utf-8", b"this page failed; the log says why\n")
                return
            self._answer(200, content_type, content)

        def _answer(self, status: int, content_type: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            """A scrape every few seconds is no news."""

    return Handler


def mutual_tls(certificate_pem: str, key_pem: str, authority_pem: str) -> ssl.SSLContext:
    """A server's context that wants a certificate of `authority_pem` from its clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # this authority is believed, not what is above it
    context.load_verify_locations(cadata=authority_pem)
    # The library wants a file; this one is in memory and without a name.
    descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, f"{key_pem}\n{certificate_pem}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


def users_only(peer: ssl.SSLSocket) -> None:
    """Raises Denied unless the certificate at the other end is a user's: what one device shows is no other device's business."""
    names: Any = (peer.getpeercert() or {}).get("subjectAltName", ())
    if not any(kind == "URI" and name.startswith(urn("user", "")) for kind, name in names):
        raise Denied("only a user's certificate may read this: 'controller login' makes one")


def is_loopback(host: str) -> bool:
    """Whether a numeric address stays on this machine."""
    return host == "::1" or host.startswith("127.")


def parse_address(address: str, option: str) -> tuple[str, int]:
    """(host, port) of `HOST:PORT`, `[V6]:PORT` or `:PORT` (loopback). Raises UserError."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise UserError(f"{option} {address}: expected HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)
