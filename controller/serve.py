"""The long-running controller: a farm whose devices enroll, and what stands around it.

<state>/driver.lock           held by the one process that serves this state
<state>/store.db, artifacts/  the farm
<state>/authority/            key and certificate of the controller's authority
<state>/ports.json            where it was reached last
<state>/private/control.sock  for commands of this machine's administrator: no certificate is needed there
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from controller.artifacts import ArtifactStore
from controller.authority import Authority
from controller.config.controller_file import ControllerSettings
from controller.farm import Farm
from controller.hosted import driver_lock
from controller.metrics import Listener as MetricsListener
from controller.metrics import listen
from controller.ports import Ports
from controller.registry import Registry
from controller.server import Doors, Server
from controller.store import SqlStore
from controller.telemetry import PERIOD_S
from edgefarm.errors import Busy, StorageError, UserError

_LOG = logging.getLogger(__name__)
_SOCKET_PATH_BYTES = 100  # of the 108 that Linux allows
_DRAIN_S = 10.0


class Listener(Protocol):
    """Something else that listens while the controller serves: a metrics page, discovery."""

    def start(self) -> object:
        """Listens."""
        ...

    def stop(self) -> object:
        """Ends; may be called twice."""
        ...


class Serving:
    """A controller, inside a `with` block.

    Args:
        state: its folder; made if absent.
        listeners: make what else shall listen; they end before the farm does.

    Raises on entry:
        Busy: another process serves this state, or an address is taken.
        StorageError: the state can't be used.
        UserError: the settings or the user's authority can't be.
    """

    def __init__(self, state: Path, settings: ControllerSettings, listeners: Sequence[Callable[[Farm, Registry], Listener]] = ()) -> None:
        self._state, self._settings, self._listeners = state.absolute(), settings, tuple(listeners)
        self._held = contextlib.ExitStack()
        self.metrics: MetricsListener | None = None

    def __enter__(self) -> Serving:
        settings = self._settings
        with contextlib.ExitStack() as held:
            held.enter_context(driver_lock(self._state))
            store = SqlStore(self._state / "store.db")
            held.callback(store.close)
            authority = Authority(self._state / "authority", settings.authority)
            self.registry = Registry(store, authority, life_s=settings.certificate_s)
            telemetry_s = PERIOD_S if settings.metrics else 0.0
            artifacts = ArtifactStore(self._state / "artifacts")
            self.farm = Farm(store, artifacts, labels=self.registry.labels, telemetry_s=telemetry_s)
            self.registry.on_barred = self.farm.expel
            for device, reason in self.registry.barred().items():
                self.farm.expel(device, reason)
            self.server = Server(self.farm, f"unix:{_socket(self._state)}", self.registry, self._doors())
            held.callback(self.server.stop, _DRAIN_S)
            self._open()
            if settings.metrics:
                self.metrics = listen(self.farm, self.registry, settings.metrics, settings.names)
                held.callback(self.metrics.stop)
                self.metrics.start()
            for make in self._listeners:
                listener = make(self.farm, self.registry)
                held.callback(listener.stop)
                listener.start()
            self._held = held.pop_all()
        self._tell()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _doors(self) -> Doors:
        settings, self._ports = self._settings, Ports(self._state)
        join, main = self._ports.again("join", settings.join), self._ports.again("main", settings.main)
        return Doors(join, main, settings.advertise, settings.names)

    def _open(self) -> None:
        """Raises Busy."""
        settings, asked = self._settings, self.server.doors
        try:
            self.server.start()
        except Busy as error:
            if asked is None or (asked.join, asked.main) == (settings.join, settings.main):
                raise
            raise Busy(f"{error}; it was this controller's before, and devices know it: free it, or name another one: --listen") from error
        opened = self.server.doors
        assert opened is not None
        self._ports.took(opened.join, opened.main, members=bool(self.registry.members()))

    def _tell(self) -> None:
        doors = self.server.doors
        assert doors is not None
        _LOG.info("devices and users join at %s, and are served at %s", doors.join, doors.advertised or doors.main)
        if self.metrics is not None:
            _LOG.info("metrics: %s/metrics, service discovery: %s/discovery", self.metrics.url, self.metrics.url)
        _LOG.info("authority %s; commands of this machine: --controller %s", self.registry.authority.fingerprint, self.server.address)


def _socket(state: Path) -> Path:
    """Of a folder that only this user may enter. Raises StorageError, UserError."""
    folder = state / "private"
    path = folder / "control.sock"
    if len(str(path)) > _SOCKET_PATH_BYTES:
        raise UserError(f"{path}: longer than {_SOCKET_PATH_BYTES} characters, too long for a socket: choose a shorter --state")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}: make it writable, or choose another place with --state") from error
    return path
