"""What is to be told to the controller and must not get lost: attempts with their raw samples, then the end of their order."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agent.cache import Cache
from agent.journal import Journal, blobs_of
from agent.transfer import Cancelled, Transfers
from edgefarm.errors import Denied, DigestMismatch, EdgefarmError, QuotaExceeded
from edgefarm.model import (
    AccuracyResult,
    Ack,
    AgentBody,
    Attempt,
    AttemptId,
    Failure,
    FailureKind,
    LatencyResult,
    Limits,
    OrderEnded,
    Stage,
)

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 60.0
_REMEMBERED = 4096  # acknowledged launches, so that an order that crosses an Ack on the wire is not run twice


@dataclass
class _Unsent:
    limit_s: float
    refused: bool = False  # its order gave this device no rights when it was tried
    pause_s: float = _FIRST_PAUSE_S
    not_before: float = 0.0


class Outbox:
    """Delivers attempts from the journal: first their blobs, then the attempt; after the last of an order, its OrderEnded.

    `deliver` runs in one thread (the worker's); the other methods may be called from any.
    """

    def __init__(self, journal: Journal, cache: Cache, transfers: Transfers, send: Callable[[AgentBody], bool]) -> None:
        self._journal, self._cache, self._transfers, self._send = journal, cache, transfers, send
        self._lock = threading.Lock()
        self._unsent: dict[AttemptId, _Unsent] = {}
        self._ended: dict[str, OrderEnded] = {}
        self._acknowledged: deque[AttemptId] = deque(maxlen=_REMEMBERED)
        for attempt in journal.attempts():
            cache.pin(_owner(attempt.order, attempt.index), blobs_of(attempt))

    def keep(self, order: str, index: int, blobs: Mapping[str, Path]) -> dict[str, str]:
        """Moves the files of an attempt that `add` will bring into the cache; role -> digest. Raises OSError, QuotaExceeded."""
        return {role: self._cache.put_file(path, _owner(order, index)) for role, path in blobs.items()}

    def add(self, attempt: Attempt, limits: Limits) -> None:
        """Keeps an attempt whose blobs `keep` has put into the cache, and has it delivered."""
        self._cache.pin(_owner(attempt.order, attempt.index), blobs_of(attempt))
        self._journal.append(attempt)
        with self._lock:
            self._unsent[AttemptId(attempt.order, attempt.index)] = _Unsent(limits.transfer_ns / 1e9)

    def end(self, order: str, cancelled: bool, local_s: int | None = None) -> None:
        """Has OrderEnded sent once every attempt of the order was sent. `local_s`: the time of day that is outside of its window."""
        with self._lock:
            self._ended[order] = OrderEnded(order, cancelled, local_s)

    def ending(self) -> tuple[str, ...]:
        """Orders whose OrderEnded was not sent yet."""
        with self._lock:
            return tuple(self._ended)

    def finished(self, order: str) -> frozenset[int]:
        """Launches of an order that must not be run again: on their way to the controller, or acknowledged without any failure.

        What failed and was acknowledged may be ordered again, on purpose.
        """
        with self._lock:
            acknowledged = {i.index for i in self._acknowledged if i.order == order}
        return frozenset(acknowledged | {a.index for a in self._journal.attempts() if a.order == order})

    def ask_again(self, order: str) -> None:
        """An order gives this device new rights: what was refused is due at once."""
        with self._lock:
            for identity, unsent in self._unsent.items():
                unsent.not_before = 0.0
                unsent.refused &= identity.order != order

    def attached(self) -> None:
        """A new session: everything that is not acknowledged is due again."""
        fresh = Limits().transfer_ns / 1e9
        with self._lock:
            for attempt in self._journal.attempts():
                identity = AttemptId(attempt.order, attempt.index)
                before = self._unsent.get(identity, _Unsent(fresh))
                self._unsent[identity] = _Unsent(before.limit_s, before.refused)

    def acknowledge(self, ack: Ack) -> None:
        """The controller has it: forget it, and let its blobs go."""
        identity = AttemptId(ack.order, ack.index)
        attempt = self._journal.get(identity)
        with self._lock:
            self._unsent.pop(identity, None)
            if attempt is not None and not _has_failure(attempt):
                self._acknowledged.append(identity)
        self._journal.acknowledge(identity)
        self._cache.unpin(_owner(ack.order, ack.index))

    def deliver(self, stopped: Callable[[], bool]) -> float | None:
        """Sends what is due; returns the seconds until something else is, or None (nothing, or no session)."""
        if not self._transfers.attached.is_set():
            return None
        now = time.monotonic()
        with self._lock:
            due = [i for i, u in self._unsent.items() if u.not_before <= now]
        for identity in due:
            if stopped():
                return None
            self._deliver(identity, stopped)
        self._send_ends()
        with self._lock:
            waits = [u.not_before for u in self._unsent.values()]
        return max(0.0, min(waits) - time.monotonic()) if waits else None

    def _deliver(self, identity: AttemptId, stopped: Callable[[], bool]) -> None:
        attempt = self._journal.get(identity)
        with self._lock:
            unsent = self._unsent.get(identity)
        if unsent is None:
            return
        if attempt is None:
            self._sent(identity, unsent)
            return
        try:
            for digest in blobs_of(attempt):
                self._transfers.push(digest, unsent.limit_s, stopped)
        except Cancelled:
            return
        except (EdgefarmError, OSError) as error:
            unsent.refused |= isinstance(error, Denied)
            # After a refusal, a quota is that of other orders: it says nothing about this attempt.
            if not isinstance(error, DigestMismatch) and (unsent.refused or not isinstance(error, QuotaExceeded)):
                _LOG.warning("order %s launch %d: kept, sent again in %.1f s: %s", attempt.order, attempt.index, unsent.pause_s, error)
                self._postpone(unsent)
                return
            attempt = self._without_blobs(attempt, str(error))
        if self._send(attempt):
            self._sent(identity, unsent)
        else:
            self._postpone(unsent)

    def _sent(self, identity: AttemptId, unsent: _Unsent) -> None:
        with self._lock:  # a new session may have made it due again meanwhile: then it is another object, and stays
            if self._unsent.get(identity) is unsent:
                del self._unsent[identity]

    def _postpone(self, unsent: _Unsent) -> None:
        """Later, and later each time; a new session makes it due at once and begins with short pauses again."""
        unsent.not_before = time.monotonic() + unsent.pause_s
        unsent.pause_s = min(_LONGEST_PAUSE_S, unsent.pause_s * 2)

    def _without_blobs(self, attempt: Attempt, reason: str) -> Attempt:
        """What is still true of an attempt whose raw samples or outputs cannot be stored."""
        outcome = attempt.outcome
        if isinstance(outcome, LatencyResult):
            _LOG.warning("order %s launch %d: raw samples not stored: %s", attempt.order, attempt.index, reason)
            reduced = replace(attempt, outcome=replace(outcome, samples=""))
        elif isinstance(outcome, AccuracyResult):
            failure = Failure(FailureKind.TRANSFER, f"the outputs could not be sent: {reason}", Stage.TRANSFER)
            reduced = replace(attempt, outcome=failure)
        else:
            return attempt
        self._journal.append(reduced)
        return reduced

    def _send_ends(self) -> None:
        with self._lock:
            held = {i.order for i in self._unsent}
            ready = [ended for order, ended in self._ended.items() if order not in held]
        for ended in ready:
            if self._send(ended):
                with self._lock:
                    self._ended.pop(ended.order, None)


def _owner(order: str, index: int) -> str:
    return f"attempt {order} {index}"


def _has_failure(attempt: Attempt) -> bool:
    outcome = attempt.outcome
    return isinstance(outcome, Failure) or (isinstance(outcome, LatencyResult) and any(c.failure is not None for c in outcome.contenders))
