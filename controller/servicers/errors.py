"""From errors to gRPC statuses, and from a call's metadata to who calls. All calls that may wait run in threads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from typing import Any, NoReturn, Protocol, TypeVar

import grpc

from controller.sessions import Peer
from edgefarm.errors import GRPC_STATUS, Denied, EdgefarmError, StorageError

_LOG = logging.getLogger(__name__)
_MESSAGE_BYTES = 2000  # of an error: it travels in a header, where each may become three; longer headers end a call as "too large"
T = TypeVar("T")
Context = Any  # grpc.aio.ServicerContext


async def abort(context: Context, error: EdgefarmError) -> NoReturn:
    """Ends a call with the status that `error` stands for; its code travels as trailing metadata."""
    status = grpc.StatusCode[GRPC_STATUS.get(error.code, "UNKNOWN")]
    await context.abort(status, _shortened(str(error)), trailing_metadata=(("edgefarm-code", error.code),))
    raise AssertionError("abort returned")


def _shortened(message: str) -> str:
    written = message.encode()
    return message if len(written) <= _MESSAGE_BYTES else written[:_MESSAGE_BYTES].decode(errors="ignore") + " …"


@contextlib.asynccontextmanager
async def translated(context: Context, storage_failed: Callable[[StorageError], object]) -> AsyncIterator[None]:
    """Aborts the call for every error of the block; a bug of ours is logged, and told without its details.

    `storage_failed` is called with an error of our own disk: the device can do nothing about it. It must not block.
    """
    try:
        yield
    except EdgefarmError as error:
        if isinstance(error, StorageError):
            storage_failed(error)
        await abort(context, error)
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except Exception:
        _LOG.exception("a call failed")
        await context.abort(grpc.StatusCode.INTERNAL, "the controller failed; its log says why")


def peer_of(context: Context) -> Peer:
    """Who calls, as its metadata says; nothing is checked."""
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    return Peer(metadata.get("edgefarm-device", ""), metadata.get("edgefarm-secret", ""), metadata.get("edgefarm-session", ""))


class Devices(Protocol):
    """Knows which device calls (`controller.servicers.gate.Gate`)."""

    def device(self, context: Context) -> Peer | None:
        """None if a user calls. Raises Denied."""
        ...


async def authenticated(context: Context, devices: Devices) -> Peer | None:
    """The device that calls, None if a user does; aborts with UNAUTHENTICATED if it can't prove it."""
    try:
        return devices.device(context)
    except Denied as error:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, _shortened(str(error)), trailing_metadata=(("edgefarm-code", error.code),))
    raise AssertionError("abort returned")


async def in_thread(threads: Executor, call: Callable[..., T], *arguments: Any) -> T:
    """Runs what may wait (a lock, the database, a disk) without holding up the loop."""
    return await asyncio.get_running_loop().run_in_executor(threads, call, *arguments)
