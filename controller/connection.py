"""Connections to a running controller: patient over breaks and restarts, errors of our own tree only."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from edgefarm.channels import KEPT_OPTIONS, as_error, open_channel
from edgefarm.credentials import Identity
from edgefarm.errors import EdgefarmError, Unreachable, UserError

T = TypeVar("T")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
ANSWER_S = 30.0  # in which a controller answers a call that does not wait for anything
MESSAGE_BYTES = 16 * 2**20
_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    *KEPT_OPTIONS,
    ("grpc.enable_retries", 0),  # trying again is ours: within a limit, and told
    ("grpc.use_local_subchannel_pool", 1),
]
# What a broken connection, or a controller that stops or is not there, looks like. Calls that are repeated are idempotent.
_TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)


class Connection:
    """A channel to one controller. Safe from any thread.

    Args:
        address: HOST:PORT of its main port, or `unix:/path` of a private socket.
        identity: who we are, and whom we believe; None: plain, which stays on this machine.
        patience_s: how long a call goes on trying while the controller can't be reached.
    """

    def __init__(self, address: str, identity: Identity | None = None, patience_s: float = 300.0) -> None:
        self.address, self.patience_s, self._identity = address, patience_s, identity
        self.channel = open_channel(address, identity, _OPTIONS)
        self._closed = threading.Event()

    def close(self) -> None:
        """Ends the channel; calls that are under way end with Unreachable."""
        self._closed.set()
        self.channel.close()

    def call(self, method: Any, request: Any, wait_s: float = 0.0, patience_s: float | None = None) -> Any:
        """One answer to one request that may take `wait_s` longer than others. Raises what the controller raised, Unreachable."""
        return self.persist(lambda: method(request, timeout=ANSWER_S + wait_s), patience_s=patience_s)

    def gather(self, method: Any, request: Any, wait_s: float = 0.0, patience_s: float | None = None) -> list[Any]:
        """All messages of a streamed answer."""
        return self.persist(lambda: list(method(request, timeout=ANSWER_S + wait_s)), patience_s=patience_s)

    def persist(self, attempt: Callable[[], T], arrived: Callable[[], int] = lambda: 0, patience_s: float | None = None) -> T:
        """Makes a call until it gets through.

        Args:
            attempt: the call; it may raise grpc.RpcError.
            arrived: how much the attempts have brought; while it grows, patience begins anew.
            patience_s: instead of the connection's own.

        Raises:
            EdgefarmError: as the controller raised it.
            Unreachable: it could not be reached for `patience_s`.
        """
        patience_s = self.patience_s if patience_s is None else patience_s
        began, pause, before = time.monotonic(), _FIRST_PAUSE_S, arrived()
        while True:
            try:
                return attempt()
            except grpc.RpcError as status:
                error = _final(status)
                if error is not None:
                    raise error from status
                detail = _detail(status)
            except ValueError as error:  # grpc's word for a channel that was closed
                raise Unreachable(f"controller {self.address}: the connection was closed") from error
            if (now := arrived()) > before:
                began, pause, before = time.monotonic(), _FIRST_PAUSE_S, now
            # Decorrelated jitter: drivers that lost their controller together do not come back together.
            pause = min(_LONGEST_PAUSE_S, random.uniform(_FIRST_PAUSE_S, 3 * pause))
            if time.monotonic() + pause - began > patience_s or self._closed.wait(pause):
                raise Unreachable(
                    f"controller {self.address} could not be reached for {patience_s:g} s: {detail}{self._expired()}; what was measured is "
                    "kept: run the same command again once it answers"
                )

    def _expired(self) -> str:
        """A certificate that ended meanwhile looks like an absent controller; the next command renews it before it connects."""
        if self._identity is None or time.time() * 1000 < self._identity.not_after_unix_ms:
            return ""
        return f"; the certificate of {self._identity.name!r} has ended since this command began"


def _final(status: grpc.RpcError) -> EdgefarmError | None:
    """The error that a failed call stands for; None if trying again may help."""
    if not isinstance(status, grpc.Call):
        return None
    if status.code() is grpc.StatusCode.UNIMPLEMENTED:
        return UserError(f"the controller is older than this command, or none: {status.details()}: upgrade it, or check the address")
    error = as_error(status)
    if type(error) is not Unreachable:
        return error
    return None if status.code() in _TRANSIENT else EdgefarmError(f"{status.code().name}: {status.details()}")


def _detail(status: grpc.RpcError) -> str:
    return (status.details() or status.code().name) if isinstance(status, grpc.Call) else str(status)
