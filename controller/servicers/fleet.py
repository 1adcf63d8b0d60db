"""The `Fleet` service: one long stream per device."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import grpc

from controller.farm import Farm
from controller.servicers.errors import Context, authenticated, in_thread, translated
from controller.servicers.gate import Gate
from controller.sessions import Peer, Session
from edgefarm.errors import Denied, ProtocolError, StorageError
from edgefarm.model import AgentBody, Hello
from edgefarm.v1 import fleet_pb2
from edgefarm.wire import decode_agent, encode_controller

_LOG = logging.getLogger(__name__)
_HELLO_S = 30.0
_MOST_BYTES = {"device": 64 * 1024, "deployment": 64 * 1024, "attempt": 256 * 1024}  # some KiB are usual
_LAST_GENERATION = 2**53


class FleetServicer:
    """Brings what devices say to the farm, and what the farm says to devices."""

    def __init__(self, farm: Farm, threads: Executor, gate: Gate) -> None:
        self._farm, self._threads, self._gate = farm, threads, gate

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serves `Attach`; the service's other methods belong to the join port (`controller.servicers.enrolment`)."""
        attach = grpc.stream_stream_rpc_method_handler(
            self.Attach, fleet_pb2.AgentMessage.FromString, fleet_pb2.ControllerMessage.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("edgefarm.v1.Fleet", {"Attach": attach}),))

    async def Attach(self, _: Any, context: Context) -> None:
        """Hello first; then both sides speak as they like, until one ends or a newer session supersedes this one."""
        peer = await authenticated(context, self._gate)
        async with translated(context, self._storage_failed):
            if peer is None:
                raise Denied("only devices attach, and this caller is none")
            hello = await self._hello(peer, context)
            bell = _Bell()
            session = await self._admit(peer, hello, bell.ring)
            try:
                await authenticated(context, self._gate)  # again: it may have been shut out before there was a session to end
                await self._converse(session, bell, context)
            finally:
                # Not awaited: this call may be ending because it was cancelled.
                self._threads.submit(self._farm.detach, session)

    def _storage_failed(self, error: StorageError) -> None:
        self._threads.submit(self._farm.storage_failed, error)

    async def _hello(self, peer: Peer, context: Context) -> Hello:
        try:
            message = await asyncio.wait_for(context.read(), _HELLO_S)
        except asyncio.TimeoutError:
            raise ProtocolError(f"device {peer.device!r}: no Hello within {_HELLO_S:g} s") from None
        body = None if message is grpc.aio.EOF else await in_thread(self._threads, _checked, message)
        if not isinstance(body, Hello):
            raise ProtocolError(f"device {peer.device!r}: the first message must be Hello")
        return body

    async def _admit(self, peer: Peer, hello: Hello, wake: Callable[[], None]) -> Session:
        def attach() -> Session:
            self._gate.admit(peer, hello)
            return self._farm.attach(peer, hello, wake)

        attaching = asyncio.ensure_future(in_thread(self._threads, attach))
        try:
            return await asyncio.shield(attaching)
        except asyncio.CancelledError:  # the device hung up meanwhile: nobody will speak for this session
            attaching.add_done_callback(self._drop)
            raise

    def _drop(self, attaching: asyncio.Future[Session]) -> None:
        if not attaching.cancelled() and attaching.exception() is None:
            self._threads.submit(self._farm.detach, attaching.result())

    async def _converse(self, session: Session, bell: _Bell, context: Context) -> None:
        """Until the device hangs up or the session ends: also while the device reads nothing of what is being said."""
        parts = [self._speak(session, bell, context), self._listen(session, context), _ended(session, bell)]
        tasks = [asyncio.ensure_future(part) for part in parts]
        for task in tasks:
            task.add_done_callback(lambda t: t.cancelled() or t.exception())  # seen: several may fail for one reason
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()

    async def _speak(self, session: Session, bell: _Bell, context: Context) -> None:
        while True:
            bell.news.clear()
            for body in session.take():
                await context.write(encode_controller(body))
            await bell.news.wait()

    async def _listen(self, session: Session, context: Context) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            await in_thread(self._threads, self._take, session, message)

    def _take(self, session: Session, message: Any) -> None:
        """In a thread: what a device says may be large, or there be much of it."""
        try:
            body = _checked(message)
            if body is not None:
                self._farm.receive(session, body)
        except ProtocolError as error:  # of this message only: ending the stream for it would end the agent
            _LOG.warning("device %s: message ignored: %s", session.device, error)


class _Bell:
    """Wakes, from any thread, those who speak to a device and those who end its session."""

    def __init__(self) -> None:
        self.news, self.end = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # the server has stopped: nobody is left to wake
            self._loop.call_soon_threadsafe(self.news.set)
            self._loop.call_soon_threadsafe(self.end.set)


async def _ended(session: Session, bell: _Bell) -> None:
    """Raises the error that ended the session, once it has."""
    while session.ended is None:
        bell.end.clear()
        await bell.end.wait()
    raise session.ended


def _checked(message: Any) -> AgentBody | None:
    """What a device said. Raises ProtocolError for what no agent says: it would be kept, and others could not be shown it."""
    for what, part in _kept(message):
        if (size := part.ByteSize()) > _MOST_BYTES[what]:
            raise ProtocolError(f"{what} of {size} bytes; at most {_MOST_BYTES[what]} are taken")
        if what == "deployment" and part.generation > _LAST_GENERATION:
            raise ProtocolError(f"deployment {part.id!r} of generation {part.generation}: none of this controller is as high")
    return decode_agent(message)


def _kept(message: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a message that are stored, and sent to whoever asks."""
    name = message.WhichOneof("body")
    if name in ("hello", "probed"):
        yield "device", getattr(message, name).device
    if name == "hello":
        yield from (("deployment", status) for status in message.hello.deployments)
    elif name == "deployment_status":
        yield "deployment", message.deployment_status
    elif name == "attempt":
        yield "attempt", message.attempt
