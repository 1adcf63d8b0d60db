"""gRPC channels to a controller, and what a failed call means. Plain text stays on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from edgefarm import errors
from edgefarm.credentials import SERVER_NAME, Identity, is_local

_BY_STATUS: dict[grpc.StatusCode, type[errors.EdgefarmError]] = {
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.PERMISSION_DENIED: errors.Denied,
    grpc.StatusCode.UNAUTHENTICATED: errors.Denied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.QuotaExceeded,
    grpc.StatusCode.DATA_LOSS: errors.DigestMismatch,
    grpc.StatusCode.INVALID_ARGUMENT: errors.ProtocolError,
}
# The controller is known by this name, which only its authority gives out, and not by where it is reached.
TLS_OPTIONS: tuple[tuple[str, Any], ...] = (("grpc.ssl_target_name_override", SERVER_NAME),)
# Of channels that are kept: tried again soon, but each try has time for the round trips that TCP, TLS and HTTP/2 need over a long way, and
# for packets that are sent again after 1 and 3 s. (gRPC bounds a try by the least backoff.) A peer that acknowledges nothing is gone after
# 20 s; one behind something that acknowledges in its place, as a tunnel does, when a ping got no answer: after a minute.
KEPT_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 30_000),
)


def open_channel(address: str, identity: Identity | None = None, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
    """A channel: mutual TLS with an identity, plain without one. Raises UserError for plain text to another machine."""
    if identity is not None:
        return grpc.secure_channel(address, credentials_of(identity), options=[*options, *TLS_OPTIONS])
    if not is_local(address):
        raise errors.UserError(
            f"controller {address}: is on another machine, and nothing is said there without a certificate: enroll first"
        )
    return grpc.insecure_channel(address, options=list(options))


def credentials_of(identity: Identity) -> grpc.ChannelCredentials:
    """What a channel of this device or user shows and believes; use it with TLS_OPTIONS."""
    return grpc.ssl_channel_credentials(
        identity.authority_pem.encode(), identity.key_pem.encode(), identity.certificate_pem.encode()
    )  # fmt: skip


def as_error(status: grpc.RpcError) -> errors.EdgefarmError:
    """The error of our tree that a gRPC status stands for; `Unreachable` where the peer named none."""
    if not isinstance(status, grpc.Call):
        return errors.Unreachable(str(status))
    code, detail = status.code(), status.details() or str(status.code())
    for key, value in status.trailing_metadata() or ():
        if key == "edgefarm-code":
            return errors.from_code(str(value), detail)
    return _BY_STATUS.get(code, errors.Unreachable)(detail)
