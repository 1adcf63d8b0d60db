"""Keeps the device's certificate fresh: in time, and when the controller seems to accept it no more.

A child process renews, since the library that signs would stay in this one's memory for good.
"""

from __future__ import annotations

import logging
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from agent.clock import Clock
from edgefarm.credentials import Identity, load_identity, parse_address

_LOG = logging.getLogger(__name__)
_LOOK_S = 6 * 3600.0  # the clock may be set meanwhile
_REFUSALS = 3  # that may be a restart of the controller
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 600.0
_CONNECT_S = 5.0


class Renewal:
    """Renews the certificate in a folder.

    A certificate that has expired looks to its owner as if the controller were away, and whose clock is wrong does not know it. So
    after some refusals in a row it is renewed whatever the clock says, if the join port answers, and the device is refused once more then:
    before, the network may have been away.

    Args:
        identity: the folder.
        state: of the agent; the child works there.
        renewed: called after each renewal.
        heard: called when the controller answers to a device that it seemed to refuse: it may attach.
    """

    def __init__(self, identity: Path, state: Path, clock: Clock, renewed: Callable[[], None], heard: Callable[[], None]) -> None:
        self._folder, self._state, self._clock = identity, state, clock
        self._renewed, self._heard, self._answered = renewed, heard, False
        self._wake, self._stop = threading.Event(), False
        self._refusals, self._pause_s, self._not_before_s = 0, _FIRST_PAUSE_S, 0.0

    def attached(self) -> None:
        """The controller took the certificate."""
        self._refusals, self._pause_s, self._answered = 0, _FIRST_PAUSE_S, False

    def refused(self) -> None:
        """An attempt to attach failed."""
        self._refusals += 1
        self._wake.set()

    def stop(self) -> None:
        """Ends `run`."""
        self._stop = True
        self._wake.set()

    def run(self) -> None:
        """Renews until `stop`. Raises UserError, StorageError where the identity can't be read."""
        while not self._stop:
            identity = load_identity(self._folder)
            if identity is None:
                return
            self._clock.heard(identity.not_before_unix_ms)
            self._clock.keep()
            left_s = (identity.renewal_unix_ms - self._clock.unix_ms()) / 1000
            due, doubted = left_s <= 0, self._refusals >= _REFUSALS
            if (due or doubted) and time.monotonic() >= self._not_before_s:
                self._try(identity, due)
                continue
            self._wake.clear()
            if not self._stop:
                pause_s = self._not_before_s - time.monotonic() if due or doubted else min(left_s, _LOOK_S)
                self._wake.wait(max(0.01, pause_s))

    def _try(self, identity: Identity, due: bool) -> None:
        before, self._answered = self._answered, _answers(identity.controller)
        if not due and self._refusals < _REFUSALS:  # it attached meanwhile
            return
        if self._answered and not (before or due):
            self._refusals = _REFUSALS - 1
            self._heard()
            return
        if self._answered:
            self._renew()
        if load_identity(self._folder) != identity:
            _LOG.info("the certificate was renewed")
            self._refusals, self._pause_s, self._not_before_s = 0, _FIRST_PAUSE_S, time.monotonic() + _FIRST_PAUSE_S
            self._renewed()
            return
        self._not_before_s = time.monotonic() + random.uniform(0.5, 1.0) * self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _renew(self) -> None:
        command = [sys.executable, "-m", "agent.cli", "renew", "--state", str(self._state)]
        try:
            # In a folder of ours: `-m` looks for modules there first. Its calls have time-outs, so that it ends.
            done = subprocess.run(command, cwd=self._state, stdin=subprocess.DEVNULL, capture_output=True)
        except OSError as error:
            _LOG.warning("renewing the certificate: %s", error)
            return
        if done.returncode != 0:
            _LOG.warning("renewing the certificate: %s", done.stderr.decode(errors="replace").strip().rpartition("\n")[2])


def _answers(address: str) -> bool:
    """Whether anybody listens there: asking costs less than a child process."""
    host, port = parse_address(address)
    try:
        socket.create_connection((host.strip("[]"), port), _CONNECT_S).close()
    except OSError:
        return False
    return True
