"""How much of each host's time each owner used, as far as it matters for who comes next.

Only owners that want the same host at the same time compete: one that joins starts level with the one that used least of those that are
there, and what was used is forgotten when nobody wants the host. So an idle owner saves nothing up, and a long lonely night is no debt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from itertools import product

from controller.store import Share


class Shares:
    """Seconds that hosts (measure domains) were occupied, by (host, owner). Callers hold the farm's lock.

    Args:
        kept: what an earlier process knew. The time until the first `settle` is nobody's: who knows what ran meanwhile.
    """

    def __init__(self, kept: Iterable[Share] = ()) -> None:
        self.used: dict[tuple[str, str], float] = {}
        self._running: dict[str, str] = {}
        self._wanting: dict[str, Set[str]] = {}
        self._settled_s = 0.0
        for share in kept:
            self.used[share.host, share.owner] = share.used_ms / 1000
            self._wanting[share.host] = {*self._wanting.get(share.host, ()), *([share.owner] if share.wanting else ())}

    def settle(self, now_s: float, running: Mapping[str, str], wanting: Mapping[str, Set[str]]) -> None:
        """Charges the time since the last call to those that ran then.

        Args:
            now_s: monotonic seconds.
            running: host -> owner of the order that occupies it from now on.
            wanting: host -> owners whose orders wait for it or are held by it.
        """
        for host, owner in self._running.items():
            self.used[host, owner] = self.used.get((host, owner), 0.0) + now_s - self._settled_s
        for host in {host for host, _ in self.used} - set(wanting):
            self._forget(host)
        for host, owners in wanting.items():
            competing = owners & self._wanting.get(host, frozenset())
            level = min((self.used.get(pair, 0.0) for pair in product([host], competing)), default=0.0)
            for owner in owners - competing:
                self.used[host, owner] = max(level, self.used.get((host, owner), 0.0))
        self._running, self._wanting, self._settled_s = dict(running), dict(wanting), now_s

    def to_keep(self, host: str) -> list[Share]:
        """What a later process should know of a host; nothing where one owner has it to himself."""
        owners = sorted(owner for at, owner in self.used if at == host)
        wanting = self._wanting.get(host, frozenset())
        return [Share(host, o, round(self.used[host, o] * 1000), o in wanting) for o in owners] if len(owners) > 1 else []

    def _forget(self, host: str) -> None:
        for pair in [p for p in self.used if p[0] == host]:
            del self.used[pair]
