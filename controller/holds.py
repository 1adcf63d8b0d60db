"""Who holds what for a while: devices by leases and drains, campaigns by their drivers. Callers hold the farm's lock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone

from controller.store import Store
from edgefarm.errors import Busy, Denied
from edgefarm.model import Hold, HoldKind

FOR_EVER = 0  # as `expires_unix_ms`


class Holds:
    """The holds that count now, kept in memory and in the store.

    Args:
        wall: UTC milliseconds; holds end by it, so that they end over a restart too.
    """

    def __init__(self, store: Store, wall: Callable[[], int]) -> None:
        self._store, self._wall = store, wall
        self._held = {(h.kind, h.name): h for h in store.holds()}

    def all(self) -> list[Hold]:
        """By kind and name."""
        return sorted((h for h in self._held.values() if not self._over(h)), key=lambda h: (h.kind.value, h.name))

    def find(self, kind: HoldKind, name: str) -> Hold | None:
        """The hold on one device or campaign."""
        found = self._held.get((kind, name))
        return None if found is None or self._over(found) else found

    def leased_to(self, device: str) -> str | None:
        """Whose orders alone the device takes; None: everybody's."""
        lease = self.find(HoldKind.LEASE, device)
        return lease.holder if lease else None

    def drained(self, device: str) -> bool:
        """Whether the device takes no orders at all."""
        return self.find(HoldKind.DRAIN, device) is not None

    def told(self, device: str) -> list[str]:
        """What a person should know about a device's holds."""
        lease, drain = self.find(HoldKind.LEASE, device), self.find(HoldKind.DRAIN, device)
        found = [f"leased to {lease.holder} until {_utc(lease.expires_unix_ms)}"] if lease else []
        return [*found, f"drained by {drain.holder} until it is released"] if drain else found

    def take(self, kind: HoldKind, names: Sequence[str], holder: str, for_s: float | None = None) -> list[Hold]:
        """Holds all of `names`, or none; a hold of the same holder is renewed. Raises Busy."""
        expires = FOR_EVER if for_s is None else self._wall() + round(for_s * 1000)
        for name in names:
            present = self.find(kind, name)
            if present is not None and present.holder != holder and kind is not HoldKind.DRAIN:
                raise Busy(_held_already(present))
        taken = [Hold(kind, name, holder, expires) for name in names]
        for hold in taken:
            self._store.save_hold(hold)
            self._held[kind, hold.name] = hold
        return taken

    def leave(self, campaign: str, driver: str) -> None:
        """Ends a driver's hold, if it has one."""
        present = self.find(HoldKind.DRIVER, campaign)
        if present is not None and present.holder == driver:
            self._end(present)

    def release(self, devices: Sequence[str], holder: str | None) -> list[str]:
        """Ends leases of `holder` (None: anybody's) and drains, of all devices or none; returns those that were held. Raises Denied."""
        present = [h for d in devices for kind in (HoldKind.LEASE, HoldKind.DRAIN) if (h := self.find(kind, d)) is not None]
        for hold in present:
            if hold.kind is HoldKind.LEASE and holder not in (None, hold.holder):
                raise Denied(f"{_held_already(hold)}; only its holder or an admin can release it")
        for hold in present:
            self._end(hold)
        return list(dict.fromkeys(h.name for h in present))

    def end_expired(self) -> list[Hold]:
        """Forgets holds whose time is over, and returns them."""
        over = [h for h in self._held.values() if self._over(h)]
        for hold in over:
            self._end(hold)
        return over

    def _end(self, hold: Hold) -> None:
        self._store.delete_hold(hold.kind, hold.name)
        del self._held[hold.kind, hold.name]

    def _over(self, hold: Hold) -> bool:
        return hold.expires_unix_ms != FOR_EVER and hold.expires_unix_ms <= self._wall()


def _utc(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _held_already(hold: Hold) -> str:
    if hold.kind is HoldKind.DRIVER:
        return f"campaign {hold.name!r} is driven by another command already ({hold.holder}): wait for it, or stop it"
    return f"device {hold.name!r} is leased to {hold.holder} until {_utc(hold.expires_unix_ms)}"
