"""The only gRPC user on a device: one stream that it opens and keeps, and the transfer of bytes by digest."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from grpc.experimental import ChannelOptions

from edgefarm import __version__, chunks, errors, heap, wire
from edgefarm.channels import KEPT_OPTIONS, as_error, open_channel
from edgefarm.credentials import Identity
from edgefarm.model import LEAST_PROTOCOL, PROTOCOL, AgentBody, ControllerBody, Heartbeat, Hello, Welcome
from edgefarm.v1 import artifacts_pb2, artifacts_pb2_grpc, fleet_pb2_grpc

_LOG = logging.getLogger(__name__)
_BACKOFF_S, _BACKOFF_CAP_S = 0.05, 10.0
_FIRST_HEARTBEAT_NS = 5 * 10**9  # until Welcome says otherwise
_ALIVE_S = 30.0
_OPTIONS = [
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.max_send_message_length", 16 * 2**20),
    *KEPT_OPTIONS,
    # A window of a fixed size: left to itself it grows to many MiB on a fast socket and gains nothing. Frames that hold a whole chunk.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 * 2**20),
    ("grpc.http2.max_frame_size", 2**20),
    (ChannelOptions.SingleThreadedUnaryStream, 1),  # a fetch has a thread of its own already
    ("grpc.enable_retries", 0),  # resuming is ours: at an offset, under a time-out
    ("grpc.use_local_subchannel_pool", 1),
]
# Statuses of Attach after which trying again cannot help. Any other one is a reason to reconnect.
UNRECOVERABLE: dict[grpc.StatusCode, tuple[type[errors.EdgefarmError], str]] = {
    grpc.StatusCode.UNAUTHENTICATED: (errors.Denied, "the controller does not accept this device's secret"),
    grpc.StatusCode.PERMISSION_DENIED: (errors.Denied, "the controller refuses this device"),
    grpc.StatusCode.FAILED_PRECONDITION: (errors.Busy, "another agent attached under this device's name"),
    grpc.StatusCode.INVALID_ARGUMENT: (errors.ProtocolError, "the controller does not understand this agent"),
    grpc.StatusCode.UNIMPLEMENTED: (errors.ProtocolError, "what answers there is no edgefarm controller"),
}
_BEAT, _CLOSED = object(), object()


class Outgoing:
    """What goes up one stream: queued bodies, and a heartbeat whenever one is due. Iterated by gRPC's own thread."""

    def __init__(self, hello: Hello, beat: Callable[[], Heartbeat], alive: Callable[[], None] = lambda: None) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._queue.put(hello)
        self._beat, self._alive = beat, alive
        self._period_s = _FIRST_HEARTBEAT_NS / 1e9
        self._due = time.monotonic() + self._period_s

    def put(self, body: AgentBody) -> None:
        """Sends `body` as soon as the stream takes it."""
        self._queue.put(body)

    def heartbeat_every(self, period_ns: int) -> None:
        """Sets the period that the controller asked for; the first one is sent at once."""
        self._period_s = max(0.05, period_ns / 1e9)
        self._due = time.monotonic() + self._period_s
        self._queue.put(_BEAT)

    def close(self) -> None:
        """Ends the iteration."""
        self._queue.put(_CLOSED)

    def __iter__(self) -> Iterator[Any]:
        while True:
            self._alive()
            try:
                body = self._queue.get(timeout=min(_ALIVE_S, max(0.0, self._due - time.monotonic())))
            except queue.Empty:
                if time.monotonic() < self._due:
                    continue
                body, self._due = _BEAT, time.monotonic() + self._period_s
            if body is _CLOSED:
                return
            if body is _BEAT:  # made here, so that what is queued because of it comes after it
                body = self._beat()
            yield wire.encode_agent(body)


@dataclass(frozen=True)
class Credentials:
    """What every call carries: the secret until the first Welcome, the session after it."""

    device: str
    secret: str = ""
    session: str = ""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """As gRPC metadata."""
        proof = ("edgefarm-session", self.session) if self.session else ("edgefarm-secret", self.secret)
        return (("edgefarm-device", self.device), proof)


class Link:
    """Keeps one session with the controller, reconnecting with jitter for as long as that may help.

    Args:
        address: gRPC target, `unix:/path` or HOST:PORT.
        credentials: device name and one-use secret.
        identity: reads the device's certificate, which proves it instead of a secret; None: there is none.
        hello: makes the first message of a session, from the state at that moment.
        receive: takes every message of the controller, Welcome included, in order; it must not block.
        beat: makes a heartbeat.
        detached: called when a session has ended.
        alive: called again and again for as long as the link does not hang.
        refused: called when an attempt to attach has failed.
        unreadable: told of an order that only a newer version can read, and why; what was ordered must be answered.

    Raises:
        UserError: plain text to another machine.
    """

    def __init__(
        self, address: str, credentials: Credentials, *, hello: Callable[[], Hello], receive: Callable[[ControllerBody], None],
        beat: Callable[[], Heartbeat], detached: Callable[[], None] = lambda: None, alive: Callable[[], None] = lambda: None,
        refused: Callable[[], None] = lambda: None, identity: Callable[[], Identity | None] = lambda: None,
        unreadable: Callable[[str, str], None] = lambda order, why: None,
    ) -> None:  # fmt: skip
        heap.tune()
        self._hello, self._receive, self._beat = hello, receive, beat
        self._detached, self._alive, self._refused, self._unreadable = detached, alive, refused, unreadable
        self._address, self._credentials, self._identity = address, credentials, identity
        self.artifacts = Artifacts(lambda: self._credentials)
        self._lock = threading.Lock()
        self._connect()
        self._outgoing: Outgoing | None = None
        self._call: Any = None
        self._stop = threading.Event()
        self._anew = threading.Event()  # the next try is to begin at once
        self._welcomed = False

    def _connect(self) -> None:
        """Opens a channel; one before it ends with its last call."""
        identity = self._identity()
        self._channel = open_channel(identity.main if identity else self._address, identity, _OPTIONS)
        self._stub = fleet_pb2_grpc.FleetStub(self._channel)  # type: ignore[no-untyped-call]
        self.artifacts.use(self._channel)

    def reconnect(self) -> None:
        """Attaches anew, with the identity as it is now."""
        with self._lock:
            self._try_anew()

    def hurry(self) -> None:
        """Attaches at once, unless it is attached: the controller can be reached again."""
        with self._lock:
            if not self._welcomed:
                self._try_anew()

    def _try_anew(self) -> None:
        """Gives the present session or try up, and the pause after it; callers hold the lock."""
        if self._stop.is_set():
            return
        self._connect()
        self._anew.set()
        if self._call is not None:
            self._call.cancel()

    def run(self) -> None:
        """Attaches again and again until `stop`. Raises the error of an unrecoverable status, NeedsUpgrade."""
        pause = _BACKOFF_S
        while True:
            self._anew.clear()
            if self._stop.is_set():
                return
            self._welcomed = False
            self._alive()
            try:
                self._session()
            except grpc.RpcError as status:
                if self._stop.is_set():
                    return
                self._raise_if_final(status)
                if not self._anew.is_set():
                    _LOG.info("not attached: %s", as_error(status))
            if self._welcomed:
                self._detached()
                pause = _BACKOFF_S
            elif not self._anew.is_set():  # what this side gave up says nothing of the other one
                self._refused()
            # Decorrelated jitter: devices that lost their controller together do not come back together.
            pause = min(_BACKOFF_CAP_S, random.uniform(_BACKOFF_S, pause * 3))
            self._anew.wait(pause)

    def send(self, body: AgentBody) -> bool:
        """Queues `body` on the present session; False if there is none (what matters is said again in the next Hello)."""
        with self._lock:
            if self._outgoing is None:
                return False
            self._outgoing.put(body)
            return True

    def stop(self) -> None:
        """Ends the session and `run`."""
        self._stop.set()
        self._anew.set()
        with self._lock:
            if self._call is not None:
                self._call.cancel()
        self._channel.close()

    def _session(self) -> None:
        with self._lock:
            if self._stop.is_set():
                return
            self._outgoing = outgoing = Outgoing(self._hello(), self._beat, self._alive)
            self._call = call = self._stub.Attach(iter(outgoing), metadata=self._credentials.metadata())
        try:
            for message in call:
                self._dispatch(message, outgoing)
        finally:
            with self._lock:
                self._outgoing = self._call = None
            outgoing.close()

    def _dispatch(self, message: Any, outgoing: Outgoing) -> None:
        try:
            body = wire.decode_controller(message)
        except errors.ProtocolError as error:
            _LOG.warning("message ignored: %s", error)
            if message.order.id:
                self._unreadable(message.order.id, str(error))
            return
        if body is None:
            _LOG.warning("message ignored: this version does not know it")
            return
        if isinstance(body, Welcome):
            self._credentials = Credentials(self._credentials.device, session=body.session)
            self._welcomed = True
            if body.protocol < LEAST_PROTOCOL:
                self._too_new(body)
            outgoing.heartbeat_every(body.heartbeat_ns or _FIRST_HEARTBEAT_NS)
        self._receive(body)

    def _too_new(self, welcome: Welcome) -> NoReturn:
        theirs = f"the controller at {self._address} ({welcome.version or 'of an unknown version'}) speaks protocol {welcome.protocol}"
        ours = f"this agent ({__version__}) {LEAST_PROTOCOL} to {PROTOCOL}"
        raise errors.NeedsUpgrade(
            f"{theirs}, {ours}: the controller is too old: upgrade it, or go back to the agent before: install.sh --back on the device"
        )

    def _raise_if_final(self, status: grpc.RpcError) -> None:
        code = status.code() if isinstance(status, grpc.Call) else None
        if code is None or code not in UNRECOVERABLE:
            return
        kind, meaning = UNRECOVERABLE[code]
        raise kind(f"{self._credentials.device}: {meaning}: {as_error(status)}") from status


class Artifacts:
    """Bytes by digest, from and to the controller. Raises errors of `edgefarm.errors` only."""

    def __init__(self, credentials: Callable[[], Credentials]) -> None:
        self._credentials = credentials

    def use(self, channel: grpc.Channel) -> None:
        """Makes calls over `channel` from now on."""
        self._stub = artifacts_pb2_grpc.ArtifactsStub(channel)  # type: ignore[no-untyped-call]
        self._fetch = channel.unary_stream(chunks.FETCH, artifacts_pb2.FetchRequest.SerializeToString, chunks.decode)

    def stat(self, digest: str, timeout_s: float) -> tuple[bool, int]:
        """(whether the controller has it whole, bytes that arrived there)."""
        try:
            reply = self._stub.Stat(artifacts_pb2.StatRequest(digest=digest), timeout=timeout_s, metadata=self._credentials().metadata())
        except grpc.RpcError as status:
            raise as_error(status) from status
        return reply.complete, reply.bytes

    def fetch(self, digest: str, offset: int, timeout_s: float) -> Incoming:
        """The bytes from `offset` on."""
        request = artifacts_pb2.FetchRequest(digest=digest, offset=offset)
        return Incoming(self._fetch(request, timeout=timeout_s, metadata=self._credentials().metadata()))

    def push(self, digest: str, total: int, offset: int, chunks: Iterator[bytes], timeout_s: float) -> tuple[bool, int]:
        """Sends `chunks`, which start at `offset`; returns what the controller has then."""
        try:
            reply = self._stub.Push(_push_chunks(digest, total, offset, chunks), timeout=timeout_s, metadata=self._credentials().metadata())
        except grpc.RpcError as status:
            raise as_error(status) from status
        return reply.complete, reply.bytes


class Incoming:
    """A running fetch: iterate over (chunk, total); total is 0 except in the first one."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __iter__(self) -> Iterator[tuple[bytes | memoryview, int]]:
        try:
            yield from self._call
        except grpc.RpcError as status:
            raise as_error(status) from status

    def cancel(self) -> None:
        """Ends the transfer."""
        self._call.cancel()


def _push_chunks(digest: str, total: int, offset: int, chunks: Iterator[bytes]) -> Iterator[artifacts_pb2.PushChunk]:
    first = True
    for data in chunks:
        if first:
            yield artifacts_pb2.PushChunk(digest=digest, offset=offset, total=total, data=data)
        else:
            yield artifacts_pb2.PushChunk(data=data)
        first = False
    if first:
        yield artifacts_pb2.PushChunk(digest=digest, offset=offset, total=total)
