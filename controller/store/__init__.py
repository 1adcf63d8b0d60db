"""Durable state of the controller: runs, devices, orders, attempts, deployments."""

from __future__ import annotations

from controller.store.base import Changes, Counts, OrderChange, QueueEntry, Share, Store, StoredDeployment, StoredOrder
from controller.store.identities import Identities, Member, Token
from controller.store.sql import SqlStore

__all__ = [
    "Changes",
    "Counts",
    "Identities",
    "Member",
    "OrderChange",
    "QueueEntry",
    "Share",
    "SqlStore",
    "Store",
    "StoredDeployment",
    "StoredOrder",
    "Token",
]
