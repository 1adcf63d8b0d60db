"""Tells the service manager how the agent does, and stops telling once a part of it hangs: it is restarted then.

Source: sd_notify(3), systemd.service(5) `WatchdogSec=`. Where no service manager listens nothing is sent and nothing is watched.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping

_LOG = logging.getLogger(__name__)
# A part that has not moved for so long hangs. The slowest thing a part does without a sign of life is waiting until gRPC finds a peer
# gone (a minute), or hashing a large file on a slow card.
HANG_S = 180.0


class Pulses:
    """Signs of life of the threads that matter. Safe from any thread; nothing to forget: a part is watched once it has beaten."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def beat(self, part: str) -> None:
        """`part` is alive."""
        self._last[part] = time.monotonic()

    def hanging(self, now: float | None = None) -> str:
        """The part that has been silent for too long, or ''."""
        moment = time.monotonic() if now is None else now
        return next((part for part, last in list(self._last.items()) if moment - last > HANG_S), "")


class Notifier:
    """The service manager that started this process, if there is one.

    Args:
        pulses: looked at before the watchdog is fed.
        environment: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` are taken out of it, so that no child speaks for the agent.
    """

    def __init__(self, pulses: Pulses, environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
        self._pulses = pulses
        self._address = _address(environment.pop("NOTIFY_SOCKET", ""))
        self._period_s = _period_s(environment)
        self._status = ""
        self._stop = threading.Event()

    def ready(self, status: str) -> None:
        """The agent serves, attached or not; the watchdog is fed from now on."""
        self._say(f"READY=1\nSTATUS={status}")
        if self._address and self._period_s:
            threading.Thread(target=self._feed, args=(self._period_s / 3,), name="watchdog", daemon=True).start()

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        if text != self._status:
            self._status = text
            self._say(f"STATUS={text}")

    def stopping(self) -> None:
        """The agent ends."""
        self._stop.set()
        self._say("STOPPING=1")

    def _feed(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            if part := self._pulses.hanging():
                _LOG.critical("%s has not moved for %.0f s: the service manager may restart the agent", part, HANG_S)
                self.status(f"{part} hangs")
            else:
                self._say("WATCHDOG=1")

    def _say(self, text: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(1.0)  # a manager that does not listen must not keep the agent
            channel.sendto(text.encode(), self._address)


def _address(path: str) -> str:
    """A leading '@' stands for an abstract socket."""
    return "\0" + path[1:] if path.startswith("@") else path


def _period_s(environment: Mapping[str, str] | dict[str, str] | os._Environ[str]) -> float:
    """How often the watchdog must be fed; 0: never, or it is meant for another process."""
    period, process = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")  # type: ignore[union-attr]
    mine = not process or process == str(os.getpid())
    return int(period) / 1e6 if mine and period.isdigit() else 0.0
