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
from pathlib import Path

import grpc

from controller.farm import Farm
from controller.servicers.artifacts import ArtifactsServicer
from controller.servicers.fleet import FleetServicer
from edgefarm import heap
from edgefarm.errors import Busy, StorageError
from edgefarm.v1 import artifacts_pb2_grpc, fleet_pb2_grpc

_LOG = logging.getLogger(__name__)
MESSAGE_BYTES = 16 * 2**20
_SOCKET_PATH_BYTES = 100  # of the 108 that Linux allows
_TICK_S = 1.0
_GRACE_S = 0.5
_CALL_THREADS, _BULK_THREADS = 8, 4
_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
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


class Server:
    """Serves `farm` at `address` (`unix:/path`, `127.0.0.1:0` …) between `start` and `stop`."""

    def __init__(self, farm: Farm, address: str) -> None:
        self._farm, self.address = farm, address
        self._calls = ThreadPoolExecutor(_CALL_THREADS, thread_name_prefix="calls")
        self._bulk = ThreadPoolExecutor(_BULK_THREADS, thread_name_prefix="bulk")
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._started: Future[str] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    def start(self) -> str:
        """Listens; returns the address, with the port that was taken. Raises Busy if it is in use."""
        heap.tune()
        self._thread.start()
        self.address = self._started.result()
        return self.address

    def stop(self) -> None:
        """Ends all streams and the thread; may be called twice."""
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None:
            with contextlib.suppress(RuntimeError):  # stopped already
                loop.call_soon_threadsafe(stopping.set)
        if self._thread.is_alive():
            self._thread.join()
        self._calls.shutdown()
        self._bulk.shutdown()

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
        server = grpc.aio.server(options=_OPTIONS)
        fleet_pb2_grpc.add_FleetServicer_to_server(FleetServicer(self._farm, self._calls), server)  # type: ignore[no-untyped-call]
        bulk = ArtifactsServicer(self._farm, self._bulk)
        artifacts_pb2_grpc.add_ArtifactsServicer_to_server(bulk, server)  # type: ignore[no-untyped-call]
        try:
            port = server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise Busy(f"address {self.address}: in use, or not allowed: {error}") from error
        await server.start()
        self._started.set_result(self.address if self.address.startswith("unix:") else f"{self.address.rpartition(':')[0]}:{port}")
        ticking = asyncio.create_task(self._tick())
        try:
            await self._stopping.wait()
        finally:
            ticking.cancel()
            await server.stop(_GRACE_S)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                await asyncio.get_running_loop().run_in_executor(self._calls, self._farm.tick)
            except Exception:
                _LOG.exception("looking for silent devices failed")
