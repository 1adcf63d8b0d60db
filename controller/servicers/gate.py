"""Who calls: by the certificate of a TLS connection; on the private socket a device by its secret, else this user."""

from __future__ import annotations

from controller.registry import DEVICE, Registry
from controller.roles import Caller
from controller.servicers.callers import on_private_socket
from controller.servicers.errors import Context, peer_of
from controller.sessions import Doorkeeper, Peer
from edgefarm.errors import Denied
from edgefarm.model import Hello


class Gate:
    """Knows callers. In memory, so it is asked at every call, and again and again in long ones.

    Args:
        registry: who may show a certificate; None: nobody.
    """

    def __init__(self, doorkeeper: Doorkeeper, registry: Registry | None = None) -> None:
        self._doorkeeper, self._registry = doorkeeper, registry

    def device(self, context: Context) -> Peer | None:
        """The device that calls; None if a user does. Raises Denied if it can't prove it."""
        certified = self._certified(context)
        if certified is not None:
            return Peer(certified.name, certified=True) if certified.kind == DEVICE else None
        peer = peer_of(context)
        if not peer.device:
            return None
        self._doorkeeper.check(peer)
        return peer

    def caller(self, context: Context) -> Caller:
        """The device or user that calls. Raises Denied."""
        certified = self._certified(context)
        if certified is not None:
            return certified
        peer = self.device(context)
        return on_private_socket(context) if peer is None else Caller(DEVICE, peer.device)

    def admit(self, peer: Peer, hello: Hello) -> None:
        """Holds the machine that a device says Hello from against those before. Raises Denied where its key was copied; may wait."""
        if peer.certified and self._registry is not None:
            self._registry.attached(peer.device, f"{hello.device.id}/{hello.device.host}")

    def _certified(self, context: Context) -> Caller | None:
        shown = context.auth_context().get("x509_pem_cert")
        if not shown:
            return None
        if self._registry is None:
            raise Denied("this controller takes no certificates")
        return self._registry.caller(shown[0])
