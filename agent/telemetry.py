"""The metrics of a device that the controller relays: what changed goes up the stream, as often as the controller asks for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from edgefarm.model import AgentBody, Family, Telemetry

_LOG = logging.getLogger(__name__)


class Reporter:
    """Tells the present session what the page says: everything at its beginning, then what changed.

    It has a thread of its own, so that a sensor that hangs or fails makes telemetry old, not the device lost; it begins when a
    controller asks for telemetry for the first time. A report costs one look at the sensors, of which a trial takes five a second.

    Args:
        page: the families as of now.
        send: queues a message on the present session; False if there is none.
    """

    def __init__(self, page: Callable[[], Sequence[Family]], send: Callable[[AgentBody], bool]) -> None:
        self._page, self._send = page, send
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._changed = threading.Condition()
        self._period_s = 0.0
        self._stopped = self._due = False
        self._told: dict[str, Family] = {}

    def attached(self, period_ns: int) -> None:
        """A new session, which knows nothing yet and wants a report every `period_ns`; 0: none."""
        with self._changed:
            self._told, self._period_s, self._due = {}, period_ns / 1e9, period_ns > 0
            if self._due and not self._thread.is_alive() and not self._stopped:
                self._thread.start()
            self._changed.notify()

    def stop(self) -> None:
        """Ends the thread, soon."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _run(self) -> None:
        while self._wait():
            try:
                families = self._page()
            except Exception:
                _LOG.exception("no telemetry this time")
                continue
            with self._changed:  # a session that begins meanwhile is told everything after this
                now = {f.name: f for f in families}
                news = [f for f in families if self._told.get(f.name) != f]
                news += [Family(name) for name in self._told if name not in now]
                if self._send(Telemetry(tuple(news))):
                    self._told = now

    def _wait(self) -> bool:
        """Until the next report is due; False at the end."""
        with self._changed:
            while not (self._stopped or self._due):
                if not self._changed.wait(self._period_s or None):
                    break
            self._due = False
            return not self._stopped
