"""Statements about deployments; each function runs inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from controller.store.base import StoredDeployment
from controller.store.tables import deployments
from edgefarm.errors import UserError
from edgefarm.model import Deployment, DeploymentState, DeploymentStatus
from edgefarm.wire import from_bytes, to_bytes

UNDERWAY = (DeploymentState.ORDERED, DeploymentState.STAGED)
_MOST_ADOPTED = 256  # of one device: what it tells of itself must not fill the database


def add(connection: Connection, deployment: Deployment, status: DeploymentStatus, undoes: str) -> None:
    """Adds a deployment; earlier ones that are still underway will not happen any more."""
    earlier = history(connection, deployment.device, deployment.model)
    if any(s.status.generation >= deployment.generation for s in earlier):
        raise UserError(
            f"deployment of {deployment.model!r} on {deployment.device!r}: generation {deployment.generation} is not above "
            f"{earlier[-1].status.generation}, the newest: leave it 0 to get the next one"
        )
    if connection.execute(select(deployments.c.id).where(deployments.c.id == deployment.id)).first() is not None:
        raise UserError(f"deployment {deployment.id!r} exists already: an id takes effect once; leave it empty to get one")
    for stored in earlier:
        if stored.status.state in UNDERWAY:
            _set(connection, replace(stored.status, state=DeploymentState.SUPERSEDED))
    row = _row(status) | {"candidate_key": deployment.candidate.key, "undoes": undoes, "payload": to_bytes(deployment)}
    connection.execute(insert(deployments).values(row))


def save_status(connection: Connection, status: DeploymentStatus) -> None:
    """Stores what a device says; adopts a deployment that it got elsewhere."""
    known = connection.execute(select(deployments.c.undoes).where(deployments.c.id == status.id)).first()
    if known is None:
        taken = _of(status.device, status.model) & (deployments.c.generation == status.generation)
        adopted = (deployments.c.device == status.device) & deployments.c.payload.is_(None)
        room = connection.execute(select(func.count()).select_from(deployments).where(adopted)).scalar_one() < _MOST_ADOPTED
        if room and connection.execute(select(deployments.c.id).where(taken)).first() is None:
            connection.execute(insert(deployments).values(_row(status) | {"candidate_key": "", "undoes": "", "payload": None}))
        return
    if status.state is DeploymentState.COMMITTED:
        for stored in history(connection, status.device, status.model):
            if stored.status.id == known.undoes:
                _set(connection, replace(stored.status, state=DeploymentState.ROLLED_BACK, reason="rolled back by the user"))
            elif stored.status.generation < status.generation and stored.status.state is DeploymentState.COMMITTED:
                _set(connection, replace(stored.status, state=DeploymentState.SUPERSEDED))
    _set(connection, status)


def _set(connection: Connection, status: DeploymentStatus) -> None:
    values: dict[str, Any] = {"state": status.state.value, "status": to_bytes(status)}
    if status.state is DeploymentState.COMMITTED:
        values["committed"] = True
    connection.execute(update(deployments).where(deployments.c.id == status.id).values(values))


def _row(status: DeploymentStatus) -> dict[str, Any]:
    return {
        "id": status.id, "device": status.device, "model": status.model, "generation": status.generation,
        "state": status.state.value, "committed": status.state is DeploymentState.COMMITTED, "status": to_bytes(status),
    }  # fmt: skip


def _of(device: str, model: str) -> Any:
    return (deployments.c.device == device) & (deployments.c.model == model)


def history(connection: Connection, device: str, model: str) -> list[StoredDeployment]:
    """Deployments of a device (of one model), by model, oldest generation first."""
    query = select(deployments).where(_of(device, model) if model else deployments.c.device == device)
    return [_stored(r) for r in connection.execute(query.order_by(deployments.c.model, deployments.c.generation))]


def newest(connection: Connection, device: str, model: str) -> list[StoredDeployment]:
    """The newest of every (device, model)."""
    last = select(deployments.c.device, deployments.c.model, func.max(deployments.c.generation).label("generation"))
    if device:
        last = last.where(deployments.c.device == device)
    if model:
        last = last.where(deployments.c.model == model)
    top = last.group_by(deployments.c.device, deployments.c.model).subquery()
    same = (deployments.c.device == top.c.device) & (deployments.c.model == top.c.model) & (deployments.c.generation == top.c.generation)
    query = select(deployments).join(top, same).order_by(deployments.c.device, deployments.c.model)
    return [_stored(r) for r in connection.execute(query)]


def statuses(connection: Connection, ids: Collection[str]) -> list[DeploymentStatus]:
    """Statuses of some deployments."""
    query = select(deployments.c.status).where(deployments.c.id.in_(list(ids)))
    query = query.order_by(deployments.c.device, deployments.c.model, deployments.c.generation)
    return [from_bytes(DeploymentStatus, p) for p in connection.execute(query).scalars()]


def _stored(row: Any) -> StoredDeployment:
    deployment = None if row.payload is None else from_bytes(Deployment, row.payload)
    return StoredDeployment(from_bytes(DeploymentStatus, row.status), deployment, row.candidate_key, row.committed, row.undoes)
