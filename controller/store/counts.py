"""How much there is of what; each function runs inside the caller's transaction."""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from controller.store.base import Counts
from controller.store.tables import deployments, orders, runs


def counts(connection: Connection) -> Counts:
    """Orders and newest deployments by state, and the names of all runs."""
    by_state = select(orders.c.state, func.count().label("number")).group_by(orders.c.state)
    last = select(deployments.c.device, deployments.c.model, func.max(deployments.c.generation).label("generation"))
    top = last.group_by(deployments.c.device, deployments.c.model).subquery()
    same = (deployments.c.device == top.c.device) & (deployments.c.model == top.c.model) & (deployments.c.generation == top.c.generation)
    newest = select(deployments.c.state, func.count().label("number")).join(top, same).group_by(deployments.c.state)
    names = connection.execute(select(runs.c.name).order_by(runs.c.sequence)).scalars()
    return Counts(
        {r.state: r.number for r in connection.execute(by_state)},
        {r.state: r.number for r in connection.execute(newest)},
        tuple(names),
    )
