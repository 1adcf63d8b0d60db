"""A run's orders and attempts as the driver sees them, kept decoded: each call reads only what changed."""

from __future__ import annotations

from controller.store import Store
from edgefarm.model import Attempt, OrderStatus, Progress


class RunView:
    """The state of one run, brought up to date on demand. Callers hold the farm's lock."""

    def __init__(self, store: Store, run: str) -> None:
        self._store, self._run = store, run
        self.revision = -1
        self._orders: dict[str, OrderStatus] = {}
        self._touched: dict[str, int] = {}  # order -> revision of its last change
        self._attempts: dict[str, dict[int, Attempt]] = {}

    def refresh(self) -> Progress:
        """The present state. Raises NotFound for an unknown run."""
        changes = self._store.changes(self._run, self.revision)
        touched = {c.order.id for c in changes.orders} | {a.order for a in changes.attempts}
        for attempt in changes.attempts:
            self._attempts.setdefault(attempt.order, {})[attempt.index] = attempt
        for change in changes.orders:
            self._orders[change.order.id] = OrderStatus(change.order, change.state, change.sent_to)
        for order_id in touched:
            status, mine = self._orders[order_id], self._attempts.get(order_id, {})
            self._orders[order_id] = OrderStatus(status.order, status.state, status.device, tuple(mine[i] for i in sorted(mine)))
            self._touched[order_id] = changes.revision
        self.revision = changes.revision
        return Progress(self.revision, tuple(self._orders.values()))

    def news(self, since: int) -> Progress:
        """The present state, only of orders that changed after revision `since`, each whole. Raises NotFound for an unknown run."""
        self.refresh()
        return Progress(self.revision, tuple(s for order_id, s in self._orders.items() if self._touched[order_id] > since))
