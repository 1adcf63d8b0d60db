"""The join port: `Fleet.Enroll` and `Fleet.Renew`, and nothing else. Callers have no certificate there, or one that has expired."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Any

import grpc

from controller.registry import Registry
from controller.servicers.errors import Context, in_thread, translated
from edgefarm.errors import EdgefarmError, ProtocolError, StorageError
from edgefarm.v1 import fleet_pb2

_LOG = logging.getLogger(__name__)
_NONCE_BYTES = 32
_STEP_S = 30.0


class EnrolmentServicer:
    """Takes devices and users in.

    Args:
        main_address: where everything else is done, HOST:PORT, or :PORT on the same host.
    """

    def __init__(self, registry: Registry, threads: Executor, main_address: str) -> None:
        self._registry, self._threads, self._main_address = registry, threads, main_address

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serves the two methods; for all others the server says that there are none."""
        enroll = grpc.unary_unary_rpc_method_handler(
            self.Enroll, fleet_pb2.EnrollRequest.FromString, fleet_pb2.EnrollReply.SerializeToString
        )
        renew = grpc.stream_stream_rpc_method_handler(self.Renew, fleet_pb2.RenewRequest.FromString, fleet_pb2.RenewReply.SerializeToString)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("edgefarm.v1.Fleet", {"Enroll": enroll, "Renew": renew}),))

    async def Enroll(self, request: Any, context: Context) -> Any:
        """A certificate for a token and a key."""
        async with translated(context, _storage_failed), _noted(context, request.name[:63] or "a user"):
            wanted = (request.token, request.name, request.csr_pem.encode(), request.kind)
            made = await in_thread(self._threads, self._registry.enroll, *wanted)
            pem = made.certificate_pem.decode()
            return fleet_pb2.EnrollReply(kind=made.kind, name=made.name, certificate_pem=pem, main_address=self._main_address)

    async def Renew(self, _: Any, context: Context) -> None:
        """A fresh certificate for an old one, if its key signs our nonce: that is good for this call only."""
        async with translated(context, _storage_failed), _noted(context, "a renewal"):
            shown, nonce = await _read(context), secrets.token_bytes(_NONCE_BYTES)
            await context.write(fleet_pb2.RenewReply(nonce=nonce))
            proved = await _read(context)
            made = await in_thread(self._threads, self._registry.renew, shown.certificate_pem.encode(), nonce, proved.signature)
            pem = made.certificate_pem.decode()
            now_ms = time.time_ns() // 1_000_000
            await context.write(fleet_pb2.RenewReply(certificate_pem=pem, main_address=self._main_address, unix_ms=now_ms))


async def _read(context: Context) -> Any:
    try:
        message = await asyncio.wait_for(context.read(), _STEP_S)
    except asyncio.TimeoutError:
        raise ProtocolError(f"no next step of a renewal within {_STEP_S:g} s") from None
    if message is grpc.aio.EOF:
        raise ProtocolError("a renewal that ended half way")
    return message


@contextlib.asynccontextmanager
async def _noted(context: Context, who: str) -> AsyncIterator[None]:
    """Writes refusals into the log: somebody may be trying tokens."""
    try:
        yield
    except EdgefarmError as error:
        _LOG.warning("refused %r from %s: %s", who, context.peer(), error)
        raise


def _storage_failed(error: StorageError) -> None:
    """Nobody else is told: the caller gets it."""
