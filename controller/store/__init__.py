"""Durable state of the controller: runs, devices, orders, attempts, deployments."""

from __future__ import annotations

from controller.store.base import Changes, OrderChange, QueueEntry, Store, StoredDeployment, StoredOrder
from controller.store.sql import SqlStore

__all__ = ["Changes", "OrderChange", "QueueEntry", "SqlStore", "Store", "StoredDeployment", "StoredOrder"]
