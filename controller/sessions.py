"""Who is attached: proofs of identity, and the stream's two ends as the farm sees them (no gRPC here)."""

from __future__ import annotations

import hmac
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edgefarm.errors import Denied, EdgefarmError, Unreachable
from edgefarm.model import ControllerBody, Device
from edgefarm.windows import DAY_S

_MOST_WAITING = 10_000  # messages; a few at most wait for a device that reads them


@dataclass(frozen=True)
class Peer:
    """What a caller says it is: a device's name, with a one-use secret or the token of its session.

    `certified`: TLS and the registry have proved it already.
    """

    device: str
    secret: str = ""
    session: str = ""
    certified: bool = False


class Doorkeeper:
    """Exchanges one-use secrets for session tokens. Safe from any thread.

    A secret is bound to the first agent process that shows it and ends when the token is used: an agent whose Welcome got lost
    may show it again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secrets: dict[str, str] = {}
        self._bound: dict[str, str] = {}
        self._tokens: dict[str, str] = {}

    def invite(self, device: str) -> str:
        """A new secret for `device`; an older one is void. The token of a running session stays good until the secret is used."""
        with self._lock:
            self._bound.pop(device, None)
            self._secrets[device] = secrets.token_hex(32)
            return self._secrets[device]

    def check(self, peer: Peer) -> None:
        """Raises Denied unless the proof is right."""
        with self._lock:
            self._check(peer)

    def exchange(self, peer: Peer, instance: str) -> str:
        """The token of the device's session, empty for one that needs none. Raises Denied."""
        with self._lock:
            self._check(peer)
            if peer.session or peer.certified:
                return peer.session
            if self._bound.setdefault(peer.device, instance) != instance:
                raise Denied(f"device {peer.device!r}: its secret was used by another process")
            self._tokens[peer.device] = secrets.token_hex(32)
            return self._tokens[peer.device]

    def _check(self, peer: Peer) -> None:
        if peer.certified:
            return
        if peer.session:
            if not _equal(peer.session, self._tokens.get(peer.device, "")):
                raise Denied(f"device {peer.device!r}: its session is not valid any more")
            if peer.device in self._bound:  # this token came by the secret: it did arrive
                del self._bound[peer.device]
                del self._secrets[peer.device]
        elif not _equal(peer.secret, self._secrets.get(peer.device, "")):
            raise Denied(f"device {peer.device!r}: unknown, or its secret was used already")


def _equal(given: str, right: str) -> bool:
    return bool(given) and bool(right) and hmac.compare_digest(given.encode(), right.encode())


class Session:
    """One attached stream: what is to be said to the device, and why it ended. `wake` is called when there is something new."""

    def __init__(self, device: str, instance: str, epoch: int, wake: Callable[[], None]) -> None:
        self.device, self.instance, self.epoch = device, instance, epoch
        # Orders whose last attempt came, but not their OrderEnded: not to be sent there again before then, or before this moment. A
        # device that sends an attempt out of its journal may hold the order no more, and never says that it ended.
        self.ending: dict[str, float] = {}
        self.working_on = ""  # the order that the last heartbeat named
        self.heard = 0.0  # monotonic seconds
        self.draining = False
        self.paused = False  # by its user, on the device
        self.ended: EdgefarmError | None = None
        self._outbox: deque[ControllerBody] = deque()
        self._wake = wake

    def let_go(self, now: float) -> bool:
        """Waits no longer for the end of orders whose moment has passed; says whether there were any."""
        passed = [order for order, until in self.ending.items() if until <= now]
        for order in passed:
            del self.ending[order]
        return bool(passed)

    def send(self, bodies: Iterable[ControllerBody]) -> None:
        """Queues messages for the device; one that reads none of them for too long has to attach anew."""
        self._outbox.extend(bodies)
        if len(self._outbox) > _MOST_WAITING:
            self.ended = self.ended or Unreachable(f"device {self.device!r} reads nothing of what it is told")
        self._wake()

    def end(self, why: EdgefarmError) -> None:
        """Ends the stream with `why`, the first one counts; nothing more is sent."""
        self.ended = self.ended or why
        self._wake()

    def take(self) -> list[ControllerBody]:
        """Everything that waits to be sent, in order. Raises the error that ended the session."""
        if self.ended is not None:
            raise self.ended
        bodies: list[ControllerBody] = []
        while self._outbox:
            bodies.append(self._outbox.popleft())
        return bodies


@dataclass
class Station:
    """What the farm knows of one device, attached or not.

    Attributes:
        too_old: why its agent is told nothing until it is upgraded; empty if it is new enough.
        lacks: features of ours that its agent does not have; none as long as it has not attached.
        quiet_since: monotonic seconds since its stream is gone.
        told_s: the time of its day when it last told that, in seconds since midnight; None: it knows none, or has not told.
        told_at: monotonic seconds when it did, whether it knew one or not; None: it has not.
    """

    device: Device
    last_seen_unix_ms: int = 0
    session: Session | None = None
    instance: str = ""
    too_old: str = ""
    lacks: frozenset[str] = frozenset()
    probed: bool = False
    quiet_since: float = 0.0
    released: bool = False  # its orders were taken back: it was away for too long
    reason: str = "not attached yet"
    given_up: str = ""  # why nobody expects it back
    last_order: str = ""  # what the process worked on when its stream went
    allowed: frozenset[str] = frozenset()  # digests that it may fetch
    push_left: int = 0  # bytes that it may push
    granted: frozenset[str] = frozenset()  # orders whose quota is in `push_left`, or was
    told_s: int | None = None
    told_at: float | None = None

    def local_s(self, now: float) -> int | None:
        """The time of its day as it must be by now, in seconds since midnight.

        Args:
            now: monotonic seconds.
        """
        if self.told_s is None or self.told_at is None:
            return None
        return (self.told_s + max(0, int(now - self.told_at))) % DAY_S

    @property
    def takes_orders(self) -> bool:
        """Attached, new enough, probed, neither draining nor paused nor ended."""
        session = self.session
        able = self.attached and self.probed and not self.too_old
        return able and session is not None and not session.draining and not session.paused

    @property
    def attached(self) -> bool:
        """Whether there is a session that has not ended, of a device that was not given up since it began."""
        return self.session is not None and self.session.ended is None and not self.given_up
