"""An agent for the controller's tests: a real gRPC client that does what the test says, and notes what it was told."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc

from edgefarm import wire
from edgefarm.channels import open_channel
from edgefarm.credentials import Identity
from edgefarm.model import AgentBody, ControllerBody, Hello, Welcome
from edgefarm.v1 import artifacts_pb2, artifacts_pb2_grpc, fleet_pb2_grpc

T = TypeVar("T")
_END = object()


class FakeAgent:
    """One device. Use it as a context manager; `attach` as often as needed."""

    def __init__(
        self, address: str, device: str = "bench-1", secret: str = "", session: str = "", identity: Identity | None = None
    ) -> None:
        self.device, self.secret, self.session = device, secret, session
        self.told: list[ControllerBody] = []
        self.ended: grpc.RpcError | None = None
        self.closed = False
        self._changed = threading.Condition()
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._reader: threading.Thread | None = None
        self._channel = open_channel(address, identity, [("grpc.use_local_subchannel_pool", 1)])
        self._artifacts = artifacts_pb2_grpc.ArtifactsStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> FakeAgent:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        self._channel.close()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        proof = ("edgefarm-session", self.session) if self.session else ("edgefarm-secret", self.secret)
        return (("edgefarm-device", self.device), proof)

    def attach(self, hello: Hello | None) -> None:
        self.hang_up()
        self.told, self.ended, self.closed = [], None, False
        self._outgoing = outgoing = queue.SimpleQueue()
        if hello is not None:
            self.say(hello)
        stub = fleet_pb2_grpc.FleetStub(self._channel)  # type: ignore[no-untyped-call]
        self._call = stub.Attach(iter(outgoing.get, _END), metadata=self.metadata)
        self._reader = threading.Thread(target=self._read, args=(self._call,), daemon=True)
        self._reader.start()

    def _read(self, call: Any) -> None:
        try:
            for message in call:
                body = wire.decode_controller(message)
                assert body is not None
                with self._changed:
                    if isinstance(body, Welcome):
                        self.session = body.session
                    self.told.append(body)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            self.ended = error
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def say(self, body: AgentBody) -> None:
        self._outgoing.put(wire.encode_agent(body))

    def hang_up(self) -> None:
        self._outgoing.put(_END)
        if self._reader is not None:
            self._call.cancel()
            self._reader.join()

    def wait(self, kind: type[T], count: int = 1, timeout_s: float = 20.0) -> list[T]:
        def found() -> list[T]:
            return [b for b in self.told if isinstance(b, kind)]

        with self._changed:
            if not self._changed.wait_for(lambda: len(found()) >= count or self.closed, timeout_s) or len(found()) < count:
                raise AssertionError(f"{self.device} waited for {count} {kind.__name__}; was told {self.told}, ended {self.ended}")
            return found()

    def wait_closed(self, timeout_s: float = 20.0) -> grpc.RpcError | None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.closed, timeout_s)
        return self.ended

    def stat(self, digest: str) -> tuple[bool, int]:
        reply = self._artifacts.Stat(artifacts_pb2.StatRequest(digest=digest), metadata=self.metadata)
        return reply.complete, reply.bytes

    def fetch(self, digest: str, offset: int = 0, each: Callable[[bytes], None] = lambda _: None) -> tuple[bytes, int]:
        """(bytes, total)."""
        parts, total = [], 0
        for chunk in self._artifacts.Fetch(artifacts_pb2.FetchRequest(digest=digest, offset=offset), metadata=self.metadata):
            each(chunk.data)
            parts.append(chunk.data)
            total = total or chunk.total
        return b"".join(parts), total

    def push(self, digest: str, data: bytes, offset: int = 0, total: int | None = None, step: int = 256 * 1024) -> tuple[bool, int]:
        def chunks() -> Iterator[Any]:
            size = len(data) + offset if total is None else total
            yield artifacts_pb2.PushChunk(digest=digest, offset=offset, total=size, data=data[:step])
            for start in range(step, len(data), step):
                yield artifacts_pb2.PushChunk(data=data[start : start + step])

        reply = self._artifacts.Push(chunks(), metadata=self.metadata)
        return reply.complete, reply.bytes


def code_of(error: Any) -> tuple[str, str]:
    """(status, edgefarm's code) of a failed call."""
    trailing = dict(error.trailing_metadata() or ())
    return error.code().name, str(trailing.get("edgefarm-code", ""))
