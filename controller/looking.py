"""What a state folder, or a running controller, says to one who only looks, also while a command drives runs. Nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from controller.artifacts import ArtifactStore
from controller.control import Control
from controller.deployments import way_back
from controller.hosted import driver_of
from controller.progress import RunView
from controller.report.kept import kept
from controller.store import SqlStore, Store
from edgefarm.errors import UserError
from edgefarm.model import DeploymentStatus, DeviceStatus, HoldKind, OrderState, OrderStatus, Run, Wait

WAITING = "waiting_for_driver"
_OFF = "its agent runs only while a command drives this state folder"


@contextmanager
def look_into(state: Path) -> Iterator[Look]:
    """Looks into a state folder. Raises UserError if there is none, StorageError if it can't be read."""
    place = state / "store.db"
    if not place.exists():
        raise UserError(f"{state}: no run was started there yet; start one with 'controller deploy', or name another place with --state")
    store = SqlStore(place)
    try:
        yield Look(store, state / "artifacts", driver_of(state))
    finally:
        store.close()


class Look:
    """What the store knows.

    Args:
        store: the farm's; it may be in use.
        artifacts: the folder of its artifacts.
        driver: the process that drives the farm, empty if none does.
    """

    def __init__(self, store: Store, artifacts: Path, driver: str) -> None:
        self._store, self._artifacts, self._driver = store, artifacts, driver

    def runs(self, campaign: str = "") -> list[Run]:
        """Runs (of a campaign), oldest first; one that has not ended is `waiting_for_driver` where no command drives it."""
        return [r if self._driver or r.ended else replace(r, state=WAITING) for r in self._store.runs(campaign)]

    def orders(self, run: str) -> Sequence[OrderStatus]:
        """All orders of a run with their attempts. Raises NotFound."""
        return RunView(self._store, run).refresh().orders

    def devices(self) -> list[DeviceStatus]:
        """All devices that ever took part, by name: `off` while no command drives them, else `in_use`; only that command knows more."""
        held = Counter(e.sent_to for e in self._store.queue() if e.state is OrderState.SENT)
        state = "in_use" if self._driver else "off"

        def reason(name: str) -> str:
            return f"process {self._driver} drives it; it was given {held[name]} orders that have not ended" if self._driver else _OFF

        return [DeviceStatus(d, d.device_class, state, seen, reason(d.name)) for d, seen in self._store.devices()]

    def waits(self, run: str = "") -> list[Wait]:
        """None: a hosted controller's devices serve one user."""
        return []

    def report(self, run: Run) -> dict[str, Any]:
        """Empty if it has none yet. Raises NotFound, StorageError."""
        return kept(run, ArtifactStore(self._artifacts).local_path)

    def deployments(self, model: str = "") -> list[DeploymentStatus]:
        """The newest deployment of every (device, model)."""
        return [s.status for s in self._store.newest_deployments(model=model)]

    def check_way_back(self, model: str, devices: Sequence[str]) -> None:
        """Raises UserError for the first device that has no earlier deployment of the model to go back to."""
        for name in devices:
            way_back(self._store.history(name, model), name, model)


class RemoteLook:
    """What a running controller knows; as `Look`."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def runs(self, campaign: str = "") -> list[Run]:
        """Runs, oldest first, without reports unless a campaign is named; one that nobody drives is `waiting_for_driver`."""
        driven = {h.name for h in self._control.holds() if h.kind is HoldKind.DRIVER}
        known = self._control.runs(campaign, brief=not campaign)
        return [r if r.ended or r.campaign in driven else replace(r, state=WAITING) for r in known]

    def orders(self, run: str) -> Sequence[OrderStatus]:
        """All orders of a run with their attempts. Raises NotFound."""
        return self._control.progress(run).orders

    def devices(self) -> list[DeviceStatus]:
        """All registered devices, by name."""
        return list(self._control.devices())

    def waits(self, run: str = "") -> list[Wait]:
        """What orders that wait (of one run), wait for."""
        return list(self._control.waits(run))

    def report(self, run: Run) -> dict[str, Any]:
        """Empty if it has none yet. Raises NotFound."""
        return kept(run, self._control.get)

    def deployments(self, model: str = "") -> list[DeploymentStatus]:
        """The newest deployment of every (device, model)."""
        return list(self._control.deployments(model))
