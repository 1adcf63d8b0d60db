"""The `Artifacts` service: bytes by digest, in chunks. Files are read and written in threads, some MiB at a time.

Devices may touch what their open orders and deployments need; users what their role allows.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import ExitStack
from functools import partial
from io import FileIO
from typing import Any
from weakref import WeakValueDictionary

import grpc
from google.protobuf.message import Message

from controller import roles
from controller.artifacts import ArtifactWriter
from controller.farm import Farm
from controller.servicers.errors import Context, authenticated, in_thread, translated
from controller.servicers.gate import Gate
from edgefarm import chunks
from edgefarm.digest import check_digest
from edgefarm.errors import EdgefarmError, ProtocolError, QuotaExceeded, StorageError, Unreachable
from edgefarm.model import CHUNK_BYTES
from edgefarm.v1 import artifacts_pb2, artifacts_pb2_grpc

SILENCE_S = 60.0  # in a push
_BATCH = 2  # chunks per visit to the disk: a thread that takes the interpreter's lock for each would hold up the sender


class ArtifactsServicer(artifacts_pb2_grpc.ArtifactsServicer):
    """Serves the artifact store to devices and users, each within its rights."""

    def __init__(self, farm: Farm, threads: Executor, gate: Gate) -> None:
        self._farm, self._threads, self._gate = farm, threads, gate
        self._pushing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Offers the service; what `Fetch` sends is encoded already (`edgefarm.chunks`)."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Stat": grpc.unary_unary_rpc_method_handler(self.Stat, *_codec(artifacts_pb2.StatRequest, artifacts_pb2.StatReply)),
            "Fetch": grpc.unary_stream_rpc_method_handler(self.Fetch, artifacts_pb2.FetchRequest.FromString),
            "Push": grpc.stream_unary_rpc_method_handler(self.Push, *_codec(artifacts_pb2.PushChunk, artifacts_pb2.StatReply)),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("edgefarm.v1.Artifacts", handlers),))

    async def Stat(self, request: Any, context: Context) -> Any:
        """Whether a content is there, whole, or how much of it has arrived."""
        async with translated(context, self._storage_failed):
            rights = await self._rights(context, "Stat")
            _check(request.digest)
            return await in_thread(self._threads, self._stat, rights, request.digest)

    async def _rights(self, context: Context, method: str) -> _Rights:
        peer = await authenticated(context, self._gate)
        if peer is not None:
            return _Rights(self._farm, peer.device)
        roles.check(self._gate.caller(context), f"Artifacts.{method}")
        return _Rights(self._farm, None)

    def _storage_failed(self, error: StorageError) -> None:
        self._threads.submit(self._farm.storage_failed, error)

    def _stat(self, rights: _Rights, digest: str) -> artifacts_pb2.StatReply:
        rights.check_stat()
        if self._farm.artifacts.has(digest):
            return artifacts_pb2.StatReply(complete=True, bytes=self._farm.artifacts.size(digest))
        return artifacts_pb2.StatReply(complete=False, bytes=self._farm.artifacts.arrived(digest))

    async def Fetch(self, request: Any, context: Context) -> None:
        """Sends a content from an offset on; the next batch is read while one is sent."""
        async with translated(context, self._storage_failed):
            rights = await self._rights(context, "Fetch")
            _check(request.digest)
            stream, total = await in_thread(self._threads, self._open, rights, request.digest, request.offset)
            reading = asyncio.ensure_future(in_thread(self._threads, _read, stream, total))
            try:
                if total == request.offset:
                    await context.write(chunks.encode(b"", total))
                while batch := await reading:
                    self._gate.caller(context)  # who was shut out meanwhile gets no more
                    reading = asyncio.ensure_future(in_thread(self._threads, _read, stream, 0))
                    for size, message in batch:
                        await context.write(message)
                        self._farm.relay.add_transfer("fetch", size)
            finally:
                # The thread that reads ahead may still use the stream: close it after that.
                reading.add_done_callback(partial(_close, stream))

    def _open(self, rights: _Rights, digest: str, offset: int) -> tuple[FileIO, int]:
        rights.check_fetch(digest)
        return self._farm.artifacts.open(digest, offset), self._farm.artifacts.size(digest)

    async def Push(self, _: Any, context: Context) -> Any:
        """Takes a content from an offset on. A wrong offset is answered with the right one; a broken push keeps what arrived."""
        async with translated(context, self._storage_failed):
            rights = await self._rights(context, "Push")
            first = await _next(context)
            if first is grpc.aio.EOF:
                raise ProtocolError("an empty push")
            _check(first.digest)
            # One push of a digest at a time, and the others wait here rather than in a thread.
            async with self._pushing.setdefault(first.digest, asyncio.Lock()):
                push = await in_thread(self._threads, _Push, self._farm, rights, first)
                try:
                    await self._receive(push, first, context)
                    return await in_thread(self._threads, push.reply)
                finally:
                    self._threads.submit(push.close)

    async def _receive(self, push: _Push, first: Any, context: Context) -> None:
        message = first
        while message is not grpc.aio.EOF and push.wants(first):
            push.arrived.append(message.data)
            if len(push.arrived) == _BATCH:
                self._gate.caller(context)
                await in_thread(self._threads, push.write)
            message = await _next(context)
        await in_thread(self._threads, push.finish)


class _Rights:
    """What a caller may touch: a device what its orders and deployments need; a user (no device) everything, its role was checked."""

    def __init__(self, farm: Farm, device: str | None) -> None:
        self._farm, self._device = farm, device

    def check_stat(self) -> None:
        """Raises Denied."""
        if self._device is not None:
            self._farm.check_stat(self._device)

    def check_fetch(self, digest: str) -> None:
        """Raises Denied."""
        if self._device is not None:
            self._farm.check_fetch(self._device, digest)

    def take_quota(self, count: int) -> None:
        """Takes bytes that may be pushed, gives them back if negative. Raises QuotaExceeded."""
        if self._device is not None:
            self._farm.take_quota(self._device, count)


class _Push:
    """One push on its way. The bytes that are still to come are taken of the caller's quota at once, the unused given back.

    Attributes:
        arrived: chunks that are not written yet.
    """

    def __init__(self, farm: Farm, rights: _Rights, first: Any) -> None:
        self._farm, self._rights, self._total = farm, rights, first.total
        self._held = ExitStack()
        self._reserved = 0
        self.arrived: list[bytes] = []
        self._writing = threading.Lock()  # a call that is cancelled ends while one of its threads still writes
        try:
            rights.check_stat()
            self._writer: ArtifactWriter = self._held.enter_context(farm.artifacts.writer(first.digest))
            if self._writer.complete:
                return
            if first.offset == 0 or self._writer.offset > first.total:
                self._writer.restart()
            if self._writer.offset == first.offset:
                self._reserve(first.total - first.offset)
        except BaseException:
            self._held.close()
            raise

    def _reserve(self, count: int) -> None:
        self._rights.take_quota(count)
        self._reserved = count

    def wants(self, first: Any) -> bool:
        """Whether bytes from the offset that was said can be used."""
        return not self._writer.complete and (self._reserved > 0 or first.total == first.offset)

    def write(self) -> None:
        """Appends what arrived. Raises QuotaExceeded on more bytes than were announced."""
        with self._writing:
            while self.arrived:
                chunk = self.arrived.pop(0)
                if len(chunk) > self._reserved:
                    raise QuotaExceeded(f"more than the {self._total} bytes that were announced")
                self._writer.write(chunk)
                self._reserved -= len(chunk)
                self._farm.relay.add_transfer("push", len(chunk))

    def finish(self) -> None:
        """Verifies and publishes, if all is there. Raises QuotaExceeded, DigestMismatch."""
        self.write()
        if not self._writer.complete and self._writer.offset == self._total:
            self._writer.commit()

    def reply(self) -> artifacts_pb2.StatReply:
        """What is there now."""
        count = self._total if self._writer.complete else self._writer.offset
        return artifacts_pb2.StatReply(complete=self._writer.complete, bytes=count)

    def close(self) -> None:
        """Keeps what had arrived, lets others write; what did not come counts no more."""
        with contextlib.suppress(EdgefarmError):
            self.write()
        self._held.close()
        if self._reserved:
            self._rights.take_quota(-self._reserved)


def _codec(request: type[Message], reply: type[Message]) -> tuple[Callable[[bytes], Message], Callable[[Message], bytes]]:
    return request.FromString, reply.SerializeToString


async def _next(context: Context) -> Any:
    """What is pushed next. Raises Unreachable if nothing comes: others may wait to push the same."""
    try:
        return await asyncio.wait_for(context.read(), SILENCE_S)
    except asyncio.TimeoutError:
        raise Unreachable(f"nothing came for {SILENCE_S:g} s: what had arrived is kept, go on from there") from None


def _read(stream: FileIO, announced: int) -> list[tuple[int, bytes]]:
    """The next (bytes, message); `announced` is told in the first one."""
    try:
        batch = [data for _ in range(_BATCH) if (data := stream.read(CHUNK_BYTES))]
    except OSError as error:
        raise StorageError(f"artifacts {stream.name!s}: {error.strerror}: check the disk") from error
    return [(len(data), chunks.encode(data, 0 if number else announced)) for number, data in enumerate(batch)]


def _close(stream: FileIO, reading: asyncio.Future[list[tuple[int, bytes]]]) -> None:
    if not reading.cancelled():
        reading.exception()  # seen: nobody waits for this batch any more
    stream.close()


def _check(digest: str) -> None:
    try:
        check_digest(digest)
    except ValueError as error:
        raise ProtocolError(str(error)) from error
