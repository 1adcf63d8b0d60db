"""`Control`: the one interface between the driver of a run and the farm.

Two implementations are meant: in-process (`controller.farm.Farm`, hosted) and a client of the `Control` service.
Everything that crosses it is a value of `edgefarm.model`; every call is idempotent, so a driver may repeat it after a restart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from edgefarm.model import Deployment, DeploymentStatus, DeviceStatus, Order, Progress, Run


class Control(Protocol):
    """What a driver may ask of a controller. Errors are those of `edgefarm.errors`."""

    def open_run(self, campaign: str, spec_digest: str, spec: str, owner: str, labels: Mapping[str, str]) -> Run:
        """The campaign's newest run if its `spec_digest` is equal, else a new one, NAME@N+1."""
        ...

    def update_run(self, run: Run) -> None:
        """Stores state, report, exit code and end of a run."""
        ...

    def runs(self, campaign: str = "") -> Sequence[Run]:
        """All runs (of a campaign), oldest first."""
        ...

    def devices(self) -> Sequence[DeviceStatus]:
        """All registered devices, by name."""
        ...

    def has(self, digest: str) -> bool:
        """Whether the artifact store holds these bytes."""
        ...

    def put(self, source: Path | bytes) -> str:
        """Stores bytes unless they are there; returns their digest."""
        ...

    def get(self, digest: str) -> Path:
        """A local, read-only file with these bytes. Raises NotFound."""
        ...

    def submit(self, orders: Sequence[Order]) -> None:
        """Queues orders; one whose id is known already is left as it is."""
        ...

    def cancel(self, run: str, orders: Sequence[str]) -> None:
        """Cancels orders that have not ended."""
        ...

    def retry(self, run: str, orders: Collection[str] = ()) -> None:
        """Lifts quarantines and remembered failures of a run's orders (of these, if any are named)."""
        ...

    def progress(self, run: str, since: int = -1, wait_s: float = 0.0) -> Progress:
        """All orders of a run with their attempts; waits until its revision is above `since`, or `wait_s` passed."""
        ...

    def deploy(self, deployments: Sequence[Deployment], retry: bool = False) -> Sequence[DeploymentStatus]:
        """Says what devices are to run.

        A deployment with `generation` 0 gets the device's next one. One whose candidate is committed there already, or failed
        there before (unless `retry`), is not sent again: its known status comes back.
        """
        ...

    def deployments(self, model: str = "") -> Sequence[DeploymentStatus]:
        """The newest deployment of every (device, model)."""
        ...

    def roll_back(self, model: str, devices: Sequence[str]) -> Sequence[DeploymentStatus]:
        """Orders the last committed deployment before the present one again, under a new generation. Raises UserError if there is none."""
        ...

    def wait_for_deployments(self, ids: Sequence[str], timeout_s: float) -> Sequence[DeploymentStatus]:
        """Waits until each has ended (committed, failed …) or the time is over; returns the statuses as they are then."""
        ...
