"""A controller for the agent's tests: a real gRPC server on a Unix socket, with everything that came written down."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

import grpc

from edgefarm import wire
from edgefarm.digest import digest_bytes
from edgefarm.model import PROTOCOL, Ack, AgentBody, Attempt, ControllerBody, Hello, Welcome
from edgefarm.v1 import artifacts_pb2, artifacts_pb2_grpc, fleet_pb2_grpc

T = TypeVar("T")
SECRET, SESSION = "5ec4e7", "session-1"
CHUNK = 64 * 1024


class FakeController:
    """Serves one device. `acknowledge` False: attempts stay in the agent's journal. Use it as a context manager."""

    def __init__(self, folder: Path, *, secret: str = SECRET, heartbeat_ns: int = 50_000_000, telemetry_ns: int = 0) -> None:
        self.path = folder / "controller.sock"
        self.address = f"unix:{self.path}"
        self.secret, self.heartbeat_ns, self.telemetry_ns = secret, heartbeat_ns, telemetry_ns
        self.acknowledge = True
        self.received: list[AgentBody] = []
        self.blobs: dict[str, bytes] = {}
        self.partial: dict[str, bytearray] = {}
        self.credentials: list[dict[str, str]] = []
        self.fetches: list[tuple[str, int]] = []
        self.break_fetch_after: list[int] = []  # bytes after which the next fetches break off
        self.break_push_after: list[int] = []
        self.corrupt_fetches = 0
        self.refuse: Callable[[str, Any], None] = lambda call, context: None
        self.on_attach: Callable[[Hello], list[ControllerBody]] = lambda hello: []
        self._changed = threading.Condition()
        self._streams: list[queue.SimpleQueue[Any]] = []
        self._server: grpc.Server | None = None

    def __enter__(self) -> FakeController:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        fleet_pb2_grpc.add_FleetServicer_to_server(_Fleet(self), self._server)
        artifacts_pb2_grpc.add_ArtifactsServicer_to_server(_Artifacts(self), self._server)
        self._server.add_insecure_port(self.address)
        self._server.start()

    def stop(self) -> None:
        self.end_streams()
        if self._server is not None:
            self._server.stop(grace=None).wait()
        self._server = None
        self.path.unlink(missing_ok=True)

    def end_streams(self) -> None:
        with self._changed:
            for stream in self._streams:
                stream.put(None)
            self._streams.clear()

    def send(self, body: ControllerBody) -> None:
        self.wait_for(lambda: bool(self._streams), what="a stream")
        self._streams[-1].put(body)

    def put(self, payload: bytes) -> str:
        digest = digest_bytes(payload)
        self.blobs[digest] = payload
        return digest

    def note(self, body: AgentBody) -> None:
        with self._changed:
            self.received.append(body)
            self._changed.notify_all()

    def of(self, kind: type[T]) -> list[T]:
        with self._changed:
            return [b for b in self.received if isinstance(b, kind)]

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 30.0, what: str = "") -> None:
        with self._changed:
            if not self._changed.wait_for(condition, timeout_s):
                raise AssertionError(f"waited {timeout_s} s for {what or condition}; received: {self.received[-8:]}")

    def wait(self, kind: type[T], count: int = 1, matching: Callable[[T], bool] = lambda _: True) -> list[T]:
        def found() -> list[T]:
            return [b for b in self.received if isinstance(b, kind) and matching(b)]

        self.wait_for(lambda: len(found()) >= count, what=f"{count} {kind.__name__}")
        return found()

    def wait_hello(self) -> Hello:
        return self.wait(Hello)[-1]

    def open_stream(self) -> queue.SimpleQueue[Any]:
        stream: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with self._changed:
            self._streams.append(stream)
            self._changed.notify_all()
        return stream


class _Fleet(fleet_pb2_grpc.FleetServicer):
    def __init__(self, farm: FakeController) -> None:
        self._farm = farm

    def Attach(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        farm = self._farm
        credentials = {k: str(v) for k, v in context.invocation_metadata() if k.startswith("edgefarm-")}
        farm.credentials.append(credentials)
        farm.refuse("Attach", context)
        if credentials.get("edgefarm-session") != SESSION and credentials.get("edgefarm-secret") != farm.secret:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong secret")
        hello = wire.decode_agent(next(requests))
        assert isinstance(hello, Hello)
        stream = farm.open_stream()
        welcome = Welcome(PROTOCOL, (), len(farm.credentials), farm.heartbeat_ns, SESSION, telemetry_ns=farm.telemetry_ns)
        yield wire.encode_controller(welcome)
        for body in farm.on_attach(hello):
            yield wire.encode_controller(body)
        farm.note(hello)
        threading.Thread(target=self._read, args=(requests, stream), daemon=True).start()
        while (body := stream.get()) is not None:
            yield wire.encode_controller(body)

    def _read(self, requests: Iterator[Any], stream: queue.SimpleQueue[Any]) -> None:
        try:
            for message in requests:
                body = wire.decode_agent(message)
                assert body is not None
                if isinstance(body, Attempt) and self._farm.acknowledge:
                    stream.put(Ack(body.order, body.index))
                self._farm.note(body)
        except Exception:  # the stream broke: gRPC has no narrower type here
            stream.put(None)


class _Artifacts(artifacts_pb2_grpc.ArtifactsServicer):
    def __init__(self, farm: FakeController) -> None:
        self._farm = farm

    def Stat(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._farm.refuse("Stat", context)
        whole = self._farm.blobs.get(request.digest)
        if whole is not None:
            return artifacts_pb2.StatReply(complete=True, bytes=len(whole))
        return artifacts_pb2.StatReply(complete=False, bytes=len(self._farm.partial.get(request.digest, b"")))

    def Fetch(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        farm = self._farm
        farm.refuse("Fetch", context)
        payload = farm.blobs.get(request.digest)
        farm.fetches.append((request.digest, request.offset))
        if payload is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no {request.digest}")
            return
        limit = farm.break_fetch_after.pop(0) if farm.break_fetch_after else None
        if farm.corrupt_fetches:
            farm.corrupt_fetches -= 1
            payload = bytes(len(payload))
        first = True
        for start in range(request.offset, max(len(payload), request.offset + 1), CHUNK):
            if limit is not None and start - request.offset >= limit:
                context.abort(grpc.StatusCode.UNAVAILABLE, "broken off")
            yield artifacts_pb2.Chunk(data=payload[start : start + CHUNK], total=len(payload) if first else 0)
            first = False

    def Push(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        farm, digest, total = self._farm, "", 0
        farm.refuse("Push", context)
        limit = farm.break_push_after.pop(0) if farm.break_push_after else None
        for chunk in requests:
            if not digest:
                digest, total = chunk.digest, chunk.total
                held = farm.partial.setdefault(digest, bytearray())
                assert chunk.offset == len(held)
            held += chunk.data
            if limit is not None and len(held) >= limit:
                context.abort(grpc.StatusCode.UNAVAILABLE, "broken off")
        if len(held) < total:
            return artifacts_pb2.StatReply(complete=False, bytes=len(held))
        assert farm.put(bytes(held)) == digest
        return artifacts_pb2.StatReply(complete=True, bytes=total)
