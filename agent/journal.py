"""Finished attempts, kept until the controller has acknowledged them: what was measured survives any kill."""

from __future__ import annotations

import hashlib
import logging
import threading
from pathlib import Path

from edgefarm import wire
from edgefarm.digest import atomic_write, sync_directory
from edgefarm.errors import ProtocolError
from edgefarm.model import AccuracyResult, Attempt, AttemptId, LatencyResult

_LOG = logging.getLogger(__name__)
_SUFFIX = ".attempt"


def blobs_of(attempt: Attempt) -> tuple[str, ...]:
    """Digests of the raw samples or outputs that must be stored before the attempt makes sense."""
    outcome = attempt.outcome
    if isinstance(outcome, LatencyResult):
        return (outcome.samples,) if outcome.samples else ()
    if isinstance(outcome, AccuracyResult):
        return tuple(d for d in (outcome.outputs, outcome.golden) if d)
    return ()


def read_attempts(folder: Path, *, repair: bool = False) -> list[Attempt]:
    """All attempts in a journal's folder; `repair` also clears what a kill left behind, for the one process that owns the journal."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix == _SUFFIX:
            try:
                found.append(wire.from_bytes(Attempt, path.read_bytes()))
            except ProtocolError as error:
                _LOG.error("%s: unreadable attempt: %s", path, error)
                if repair:
                    path.rename(path.with_suffix(".unreadable"))
            except FileNotFoundError:  # acknowledged just now
                pass
        elif repair and path.name.endswith(".tmp"):
            path.unlink()
    return found


class Journal:
    """One file per unacknowledged attempt, written whole or not at all. Safe for several threads.

    Where the disk refuses (full, failing), an attempt is kept in memory: it is still sent, it only does not survive a kill.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._attempts: dict[AttemptId, Attempt] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for attempt in read_attempts(folder, repair=True):
            self._attempts[AttemptId(attempt.order, attempt.index)] = attempt

    def append(self, attempt: Attempt) -> bool:
        """Keeps `attempt`, replacing one of the same identity. Returns False if it could only be kept in memory."""
        identity = AttemptId(attempt.order, attempt.index)
        with self._lock:
            self._attempts[identity] = attempt
            try:
                atomic_write(self._path(identity), wire.to_bytes(attempt))
            except OSError as error:
                _LOG.error("%s: %s: attempt kept in memory only", self._folder, error.strerror)
                return False
        return True

    def acknowledge(self, identity: AttemptId) -> None:
        """Forgets an attempt; unknown ones are fine (an Ack may come twice)."""
        with self._lock:
            if self._attempts.pop(identity, None) is None:
                return
            try:
                self._path(identity).unlink(missing_ok=True)
                sync_directory(self._folder)
            except OSError as error:  # it is sent and acknowledged once more after the next start
                _LOG.warning("%s: %s", self._folder, error.strerror)

    def attempts(self) -> tuple[Attempt, ...]:
        """All unacknowledged attempts, oldest first."""
        with self._lock:
            return tuple(sorted(self._attempts.values(), key=lambda a: (a.started_unix_ms, a.order, a.index)))

    def get(self, identity: AttemptId) -> Attempt | None:
        """The attempt, if it is still unacknowledged."""
        with self._lock:
            return self._attempts.get(identity)

    def _path(self, identity: AttemptId) -> Path:
        # An order's id is the controller's text: hashed, it can't leave the folder.
        return self._folder / f"{hashlib.sha256(identity.order.encode()).hexdigest()[:40]}-{identity.index}{_SUFFIX}"
