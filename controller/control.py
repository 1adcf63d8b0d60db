"""`Control`: the one interface between the driver of a run and the farm.

Two implementations: in-process (`controller.farm.Farm`, hosted) and over gRPC (`controller.client.Client`, to a running controller,
which knows by itself who calls: it takes its own word for `owner` and `holder`).
Everything that crosses it is a value of `edgefarm.model`; every call but `roll_back` is idempotent, so a driver may repeat it after a
restart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from edgefarm.model import Deployment, DeploymentStatus, DeviceStatus, Hold, Order, Progress, Run, Wait


class Control(Protocol):
    """What a driver may ask of a controller. Errors are those of `edgefarm.errors`."""

    def open_run(self, campaign: str, spec_digest: str, spec: str, owner: str, labels: Mapping[str, str]) -> Run:
        """The campaign's newest run if its `spec_digest` is equal, else a new one, NAME@N+1, of the same owner.

        A campaign belongs to who opened it first. Raises Denied for another user who is no admin; so do all calls that change its runs.
        """
        ...

    def update_run(self, run: Run) -> None:
        """Stores state, report, exit code and end of a run. Raises RunCancelled."""
        ...

    def runs(self, campaign: str = "", *, brief: bool = False) -> Sequence[Run]:
        """All runs (of a campaign), oldest first; `brief`: without specs and reports."""
        ...

    def cancel_run(self, run: str) -> Run:
        """Ends a run for good: its open orders are cancelled, its driver gets RunCancelled. Raises UserError if it has ended."""
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

    def waits(self, run: str = "") -> Sequence[Wait]:
        """What orders that wait (of one run), wait for, by run and device; those that only wait for their run's own are not told."""
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

    def drive(self, campaign: str, driver: str) -> None:
        """Holds a campaign for one driver for half a minute; repeat it to go on. Raises Busy where another one holds it."""
        ...

    def leave(self, campaign: str, driver: str) -> None:
        """Ends `drive`."""
        ...

    def lease(self, devices: Sequence[str], holder: str, for_s: float) -> Sequence[Hold]:
        """Keeps devices for the orders of one owner: all, or none. Raises Busy where one is leased to another."""
        ...

    def drain(self, devices: Sequence[str], holder: str) -> Sequence[Hold]:
        """Keeps devices from new orders until they are released; what runs there ends."""
        ...

    def release(self, devices: Sequence[str], holder: str | None) -> Sequence[str]:
        """Ends leases of `holder` (None: anybody's) and drains; returns the devices that were held. Raises Denied."""
        ...

    def holds(self) -> Sequence[Hold]:
        """All that is held, by kind and name."""
        ...
