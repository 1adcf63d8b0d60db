"""What devices are told to run: generations, what is never sent twice, going back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from controller.store import Store, StoredDeployment
from edgefarm.digest import canonical_json
from edgefarm.errors import NotFound, UserError
from edgefarm.model import Deployment, DeploymentState, DeploymentStatus

UNDERWAY = (DeploymentState.ORDERED, DeploymentState.STAGED)
_REMEMBERED = (DeploymentState.FAILED, DeploymentState.ROLLED_BACK)
_STANDING = (*UNDERWAY, DeploymentState.COMMITTED)


class Deployments:
    """Orders deployments over the store; `send` brings one to its device, if that is attached. Callers hold the farm's lock."""

    def __init__(self, store: Store, send: Callable[[Deployment], None]) -> None:
        self._store, self._send = store, send

    def deploy(self, deployments: Sequence[Deployment], retry: bool) -> list[DeploymentStatus]:
        """As `Control.deploy`. Raises NotFound for a device that is not registered (then nothing is ordered)."""
        registered = {device.name for device, _ in self._store.devices()}
        for deployment in deployments:
            if deployment.device not in registered:
                raise NotFound(f"no device {deployment.device!r} is registered")
        return [self._deploy(d, retry) for d in deployments]

    def _deploy(self, wanted: Deployment, retry: bool) -> DeploymentStatus:
        history = self._store.history(wanted.device, wanted.model)
        if (known := _standing(wanted, history, retry)) is not None:
            return known
        generation = wanted.generation or (history[-1].status.generation + 1 if history else 1)
        taken = any(s.status.id == wanted.id for s in history)  # it failed before, and is retried
        return self._order(replace(wanted, generation=generation, id=identity(wanted, generation) if taken or not wanted.id else wanted.id))

    def roll_back(self, model: str, devices: Sequence[str]) -> list[DeploymentStatus]:
        """As `Control.roll_back`; no device named: all that run the model."""
        names = list(devices) or [s.status.device for s in self._store.newest_deployments(model=model)]
        if not names:
            raise UserError(f"model {model!r} is deployed on no device")
        statuses = []
        for newest, present, previous in [way_back(self._store.history(name, model), name, model) for name in names]:
            again = replace(previous, generation=newest + 1, id=identity(previous, newest + 1))
            statuses.append(self._order(again, undoes=present))
        return statuses

    def _order(self, deployment: Deployment, undoes: str = "") -> DeploymentStatus:
        digest = deployment.candidate.artifact.digest
        place = (deployment.id, deployment.device, deployment.model, deployment.generation)
        status = DeploymentStatus(*place, DeploymentState.ORDERED, digest)
        self._store.add_deployment(deployment, status, undoes)
        self._send(deployment)
        return status


def identity(deployment: Deployment, generation: int) -> str:
    """24 hex digits for one deployment."""
    parts = [deployment.device, deployment.model, generation, deployment.candidate.key]
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:24]


def _standing(wanted: Deployment, history: Sequence[StoredDeployment], retry: bool) -> DeploymentStatus | None:
    """The status that answers `wanted` without sending it, if there is one."""
    undone = {s.undoes for s in history if s.status.state in _STANDING}
    key = wanted.candidate.key
    last = next((s for s in reversed(history) if s.candidate_key == key or s.status.id == wanted.id), None)
    if last is None:
        return None
    if last.status.state in _REMEMBERED or last.status.id in undone:
        return None if retry else last.status
    if last.status.id == wanted.id or (last is history[-1] and last.status.state in _STANDING):
        return last.status
    later = history[history.index(last) + 1 :]
    if last.status.state is DeploymentState.COMMITTED and all(s.status.state in _REMEMBERED for s in later):
        return last.status  # what came after it did not stay: the device still runs it
    return None


def way_back(history: Sequence[StoredDeployment], device: str, model: str) -> tuple[int, str, Deployment]:
    """(newest generation, id of what runs, the last committed deployment before that). Raises UserError."""
    present = next((s for s in reversed(history) if s.status.state is DeploymentState.COMMITTED), None)
    if present is None:
        raise UserError(f"model {model!r} on device {device!r}: nothing is deployed, so there is nothing to go back from")
    for stored in reversed(history[: history.index(present)]):
        other = stored.candidate_key != present.candidate_key and stored.status.state not in _REMEMBERED
        if stored.committed and stored.deployment is not None and other:
            return history[-1].status.generation, present.status.id, stored.deployment
    raise UserError(f"model {model!r} on device {device!r}: there is no earlier deployment to go back to")
