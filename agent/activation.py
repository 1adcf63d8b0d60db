"""Activating what the controller says this device is to run: fetch, verify, stage, check, switch, report."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from agent.cache import Cache
from agent.metrics import Counters
from agent.slots import Slots
from agent.transfer import Cancelled, Transfers
from edgefarm.errors import EdgefarmError, NeedsUpgrade, NotFound
from edgefarm.model import (
    AgentBody,
    Candidate,
    Deployment,
    DeploymentState,
    DeploymentStatus,
    Failure,
    FailureKind,
    FileEntry,
    Golden,
    Limits,
    Stage,
)

_LOG = logging.getLogger(__name__)
_PIN = "deployment"


class GoldenCheck(Protocol):
    """The part of a bench that a deployment needs."""

    def golden(self, candidate: Candidate, model: Path, pack: Path, golden: Golden, cancelled: Callable[[], bool]) -> Failure | None:
        """Runs golden inputs in a fresh runner, under the host's measure lock; None if the outputs are right."""
        ...


class Activation:
    """Deployments of one device. `step` and `report_changes` run in the worker's thread."""

    def __init__(
        self, device: str, slots: Slots, cache: Cache, transfers: Transfers, check: GoldenCheck, send: Callable[[AgentBody], bool],
        counters: Counters,
    ) -> None:  # fmt: skip
        self._device, self._slots, self._cache, self._transfers = device, slots, cache, transfers
        self._check, self._send, self._counters = check, send, counters
        self._seen = slots.stamp()
        self._told = {s.id: s for s in slots.statuses()}  # by this process, or by its first Hello

    def step(self, deployment: Deployment | None, stopped: Callable[[], bool]) -> bool:
        """Brings one deployment to its end and reports it; False if there is none."""
        if deployment is None:
            return False
        try:
            status = self._deploy(deployment, stopped)
        except Cancelled:  # the agent stops; recovery undoes what was begun, and the controller sends it again
            return False
        _LOG.info(
            "deployment %s of %s, generation %d: %s %s", status.id, status.model, status.generation, status.state.value, status.reason
        )
        self._told[status.id] = status
        self._send(status)
        return True

    def report_changes(self) -> None:
        """Tells the controller what another process changed: a `edge-agent rollback` while this agent runs."""
        stamp = self._slots.stamp()
        if stamp == self._seen:
            return
        self._seen, told = stamp, self._told
        self._told = {s.id: s for s in self._slots.statuses()}
        for status in self._told.values():
            before = told.get(status.id)
            if status == before:
                continue
            if status.state is DeploymentState.ROLLED_BACK and (before is None or before.state is not status.state):
                self._counters.add_rollback("user")  # nobody else goes back to the other slot
            self._send(status)

    def _deploy(self, deployment: Deployment, stopped: Callable[[], bool]) -> DeploymentStatus:
        if deployment.device not in ("", self._device):
            return self._status(deployment, DeploymentState.FAILED, f"meant for {deployment.device}, this is {self._device}")
        try:
            if (status := self._slots.known(deployment)) is not None:
                return status
            pack = self._fetch(deployment, stopped)
            self._send(self._status(deployment, DeploymentState.STAGED))
            return self._slots.activate(deployment, self._obtain, lambda wanted, main: self._golden(wanted, main, pack, stopped))
        except NeedsUpgrade as error:
            return self._status(deployment, DeploymentState.FAILED, str(error))
        except (EdgefarmError, OSError, ValueError) as error:
            # Not remembered by the slots: the bytes may well come through when the controller orders it again.
            return self._status(deployment, DeploymentState.FAILED, f"{FailureKind.TRANSFER.value}: {error}")
        finally:
            self._cache.unpin(_PIN)

    def _golden(self, deployment: Deployment, main: Path, pack: Path | None, stopped: Callable[[], bool]) -> Failure | None:
        if deployment.golden is None or pack is None:
            return Failure(FailureKind.NUMERIC, "no golden outputs were given, so nothing can be checked", Stage.ACTIVATE)
        return self._check.golden(deployment.candidate, main, pack, deployment.golden, stopped)

    def _fetch(self, deployment: Deployment, stopped: Callable[[], bool]) -> Path | None:
        """Fetches files and golden pack, hashing again what was there before; returns the pack."""
        golden = deployment.golden
        wanted: dict[str, int | None] = {f.digest: f.bytes for f in deployment.candidate.artifact.files}
        if golden is not None:
            wanted[golden.digest] = None
        self._cache.pin(_PIN, wanted)
        limit_s = Limits().transfer_ns / 1e9
        for digest, size in wanted.items():
            self._cache.verify(digest)
            self._transfers.fetch(digest, size, limit_s, stopped)
        return None if golden is None else self._cache.find(golden.digest)

    def _obtain(self, entry: FileEntry) -> Path:
        path = self._cache.find(entry.digest, entry.bytes)
        if path is None:
            raise NotFound(f"{entry.name} ({entry.digest}) left the device's cache before it was staged")
        return path

    def _status(self, deployment: Deployment, state: DeploymentState, reason: str = "") -> DeploymentStatus:
        digest = deployment.candidate.artifact.digest
        return DeploymentStatus(deployment.id, self._device, deployment.model, deployment.generation, state, digest, reason=reason)
