"""`Server`: the gRPC side of a farm, on an event loop of its own in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from controller.farm import Farm
from controller.registry import Registry
from controller.servicers.artifacts import ArtifactsServicer
from controller.servicers.control import ControlServicer
from controller.servicers.enrolment import EnrolmentServicer
from controller.servicers.errors import in_thread
from controller.servicers.fleet import FleetServicer
from controller.servicers.gate import Gate
from edgefarm import heap
from edgefarm.credentials import is_local
from edgefarm.errors import Busy, StorageError, Unreachable, UserError
from edgefarm.v1 import control_pb2_grpc

_LOG = logging.getLogger(__name__)
MESSAGE_BYTES = 16 * 2**20
_SOCKET_PATH_BYTES = 100  # of the 108 that Linux allows
_STRANGER_BYTES = 64 * 1024  # a message of somebody whom we don't know yet
_TICK_S = 1.0
_GRACE_S = 0.5
_CALL_THREADS, _BULK_THREADS, _CONTROL_THREADS, _JOIN_THREADS = 8, 4, 4, 2
_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 30_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server
]


class RuntimeFolder:
    """A folder that only this user may enter, with a path short enough for a Unix socket; removed by `close`."""

    def __init__(self) -> None:
        places = [p for p in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp") if p and os.access(p, os.W_OK)]
        place = next((p for p in places if len(p) < _SOCKET_PATH_BYTES - 40), None)
        if place is None:
            raise StorageError(f"no writable place with a short path for a socket ({', '.join(places)}): set TMPDIR to one")
        self.path = Path(tempfile.mkdtemp(prefix="edgefarm-", dir=place))

    @property
    def address(self) -> str:
        """gRPC address of the socket."""
        return f"unix:{self.path / 'agents.sock'}"

    def close(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


@dataclass(frozen=True)
class Doors:
    """Where a controller listens for other machines, over TLS.

    Two ports, since gRPC's server asks either all callers of a port for a certificate, or none.

    Attributes:
        join: HOST:PORT for those that have no certificate yet, or an expired one.
        main: HOST:PORT for all else.
        advertised: the main address that members are told; empty: its port, on the host that they called.
        names: that the controller's certificate shall say.
    """

    join: str
    main: str
    advertised: str = ""
    names: tuple[str, ...] = ()


class Server:
    """Serves `farm` at `address` (`unix:/path`, `127.0.0.1:0` …) between `start` and `stop`.

    Args:
        address: on this machine: what is said there is not encrypted.
        registry: devices and users that may come through `doors`.
    """

    def __init__(self, farm: Farm, address: str, registry: Registry | None = None, doors: Doors | None = None) -> None:
        self._farm, self.address, self._registry, self.doors = farm, address, registry, doors
        self._calls = ThreadPoolExecutor(_CALL_THREADS, thread_name_prefix="calls")
        self._bulk = ThreadPoolExecutor(_BULK_THREADS, thread_name_prefix="bulk")
        self._control = ThreadPoolExecutor(_CONTROL_THREADS, thread_name_prefix="control")
        self._joining = ThreadPoolExecutor(_JOIN_THREADS, thread_name_prefix="joining")  # strangers keep no member waiting
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._started: Future[str] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._grace_s = _GRACE_S

    def start(self) -> str:
        """Listens; returns the address, with the port that was taken. Raises Busy if it is in use, UserError for a plain one elsewhere."""
        if not is_local(self.address):
            raise UserError(f"address {self.address}: would be heard by other machines, in plain text: listen there through `doors`")
        heap.tune()
        self._thread.start()
        self.address = self._started.result()
        return self.address

    def stop(self, grace_s: float = _GRACE_S) -> None:
        """Ends all streams at once, transfers after `grace_s` at most, and the thread; may be called twice."""
        loop, stopping, self._grace_s = self._loop, self._stopping, grace_s
        if loop is not None and stopping is not None:
            with contextlib.suppress(RuntimeError):  # stopped already
                loop.call_soon_threadsafe(stopping.set)
        if self._thread.is_alive():
            self._thread.join()
        self._calls.shutdown()
        self._bulk.shutdown()
        self._control.shutdown()
        self._joining.shutdown()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            if not self._started.done():
                self._started.set_exception(error)
            else:
                _LOG.exception("the server failed")

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        gate = Gate(self._farm.doorkeeper, self._registry)
        main = grpc.aio.server(options=_OPTIONS)
        FleetServicer(self._farm, self._calls, gate).add_to(main)
        ArtifactsServicer(self._farm, self._bulk, gate).add_to(main)
        control = ControlServicer(self._farm, self._control, gate.caller, self._registry)
        control_pb2_grpc.add_ControlServicer_to_server(control, main)  # type: ignore[no-untyped-call]
        servers, address = [main], _listen(main, self.address)
        if self._registry is not None and self.doors is not None:
            servers.append(self._open_doors(main, self._registry, self.doors))
        for server in servers:
            await server.start()
        self._started.set_result(address)
        ticking = asyncio.create_task(self._tick())
        try:
            await self._stopping.wait()
        finally:
            ticking.cancel()
            ending = [asyncio.ensure_future(server.stop(self._grace_s)) for server in servers]  # nobody new from here on
            await in_thread(self._calls, self._farm.end_sessions, Unreachable("the controller stops"))
            await asyncio.gather(*ending)

    def _open_doors(self, main: grpc.aio.Server, registry: Registry, doors: Doors) -> grpc.aio.Server:
        """Lets `main` listen for members; returns the server of those who want to become one."""
        authority = registry.authority
        pair = authority.server(doors.names)
        members_only = grpc.ssl_server_credentials([pair], authority.certificate_pem, require_client_auth=True)
        opened = replace(doors, main=_listen(main, doors.main, members_only))
        join = grpc.aio.server(options=list({**dict(_OPTIONS), "grpc.max_receive_message_length": _STRANGER_BYTES}.items()))
        told = opened.advertised or f":{opened.main.rpartition(':')[2]}"
        EnrolmentServicer(registry, self._joining, told).add_to(join)
        self.doors = replace(opened, join=_listen(join, doors.join, grpc.ssl_server_credentials([pair])))
        return join

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                await asyncio.get_running_loop().run_in_executor(self._calls, self._farm.tick)
            except Exception:
                _LOG.exception("looking for silent devices failed")


def _listen(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None) -> str:
    """Returns the address with the port that was taken. Raises Busy."""
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise Busy(f"address {address}: in use, or not allowed: {error}") from error
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
