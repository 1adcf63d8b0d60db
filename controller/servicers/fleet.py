"""The `Fleet` service: one long stream per device."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import grpc

from controller.farm import Farm
from controller.servicers.errors import Context, authenticated, in_thread, translated
from controller.servicers.gate import Gate
from controller.sessions import Peer, Session
from edgefarm.errors import Denied, ProtocolError, StorageError
from edgefarm.model import Hello
from edgefarm.v1 import fleet_pb2_grpc
from edgefarm.wire import decode_agent, encode_controller

_LOG = logging.getLogger(__name__)


class FleetServicer(fleet_pb2_grpc.FleetServicer):
    """Brings what devices say to the farm, and what the farm says to devices."""

    def __init__(self, farm: Farm, threads: Executor, gate: Gate) -> None:
        self._farm, self._threads, self._gate = farm, threads, gate

    async def Attach(self, _: Any, context: Context) -> None:
        """Hello first; then both sides speak as they like, until one ends or a newer session supersedes this one."""
        peer = await authenticated(context, self._gate)
        async with translated(context, self._storage_failed):
            if peer is None:
                raise Denied("only devices attach, and this caller is none")
            first = await context.read()
            hello = None if first is grpc.aio.EOF else decode_agent(first)
            if not isinstance(hello, Hello):
                raise ProtocolError(f"device {peer.device!r}: the first message must be Hello")
            news = asyncio.Event()
            loop = asyncio.get_running_loop()

            def wake() -> None:
                try:
                    loop.call_soon_threadsafe(news.set)
                except RuntimeError:  # the server has stopped
                    _LOG.debug("device %s: nobody left to wake", peer.device)

            session = await self._admit(peer, hello, wake)
            try:
                await authenticated(context, self._gate)  # again: it may have been shut out before there was a session to end
                await self._converse(session, news, context)
            finally:
                # Not awaited: this call may be ending because it was cancelled.
                self._threads.submit(self._farm.detach, session)

    def _storage_failed(self, error: StorageError) -> None:
        self._threads.submit(self._farm.storage_failed, error)

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

    async def _converse(self, session: Session, news: asyncio.Event, context: Context) -> None:
        listener = asyncio.ensure_future(self._listen(session, context))
        listener.add_done_callback(lambda _: news.set())
        try:
            while True:
                news.clear()
                for body in session.take():
                    await context.write(encode_controller(body))
                if listener.done():
                    listener.result()
                    return
                await news.wait()
        finally:
            listener.cancel()

    async def _listen(self, session: Session, context: Context) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            try:
                body = decode_agent(message)
                if body is not None:
                    await in_thread(self._threads, self._farm.receive, session, body)
            except ProtocolError as error:  # of this message only: ending the stream for it would end the agent
                _LOG.warning("device %s: message ignored: %s", session.device, error)
