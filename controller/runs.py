"""Runs: whose they are, how they stand, what came of their orders. Callers hold the farm's lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from controller.progress import RunView
from controller.store import Store
from edgefarm.errors import Denied, NotFound, RunCancelled, UserError
from edgefarm.model import CANCELLED, Run


class Runs:
    """The runs in the store.

    Args:
        owner_of: whose a run is; empty for one that is unknown.
        wall: UTC milliseconds.
    """

    def __init__(self, store: Store, owner_of: Callable[[str], str], wall: Callable[[], int]) -> None:
        self._store, self._owner_of, self._wall = store, owner_of, wall
        self._campaigns: dict[str, str] = {}  # whose they are, as far as it was asked for
        self._views: dict[str, RunView] = {}
        self._cancelled: set[str] = set()  # by this process: their drivers are told at their next look

    def open(self, campaign: str, spec_digest: str, spec: str, owner: str, labels: Mapping[str, str], *, admin: bool) -> Run:
        """As `Farm.open_run`."""
        self.check_campaign(campaign, None if admin else owner)
        return self._store.open_run(campaign, spec_digest, spec, owner, labels, self._wall())

    def update(self, run: Run) -> None:
        """Stores state, report, exit code and end of a run. Raises NotFound, RunCancelled."""
        self.check_not_cancelled(run.name)
        self._store.update_run(run)

    def cancel(self, name: str) -> Run:
        """Ends a run for good; its orders are not touched. Raises NotFound, UserError if it has ended."""
        found = self._store.run(name)
        if found is None:
            raise NotFound(f"no run {name!r}")
        if found.ended:
            raise UserError(f"run {name!r} has ended already: it is {found.state}")
        ended = replace(found, state=CANCELLED, exit_code=RunCancelled.exit_code, finished_unix_ms=self._wall())
        self._store.update_run(ended)
        self._cancelled.add(name)
        return ended

    def retry(self, run: str, orders: Iterable[str]) -> None:
        """Sets failed attempts aside and queues their orders again. Raises NotFound."""
        self._store.retry(run, list(orders))
        self._views.pop(run, None)

    def view(self, run: str) -> RunView:
        """What came of its orders. Raises RunCancelled."""
        if run in self._cancelled:
            self.check_not_cancelled(run)
        return self._views.setdefault(run, RunView(self._store, run))

    def check_not_cancelled(self, run: str) -> None:
        """Raises RunCancelled."""
        found = self._store.run(run)
        if found is not None and found.state == CANCELLED:
            raise RunCancelled(f"run {run!r} was cancelled by another command; the next 'controller deploy' starts a new one")

    def check_owner(self, user: str, runs: Iterable[str]) -> None:
        """Raises Denied for the first run that is another user's."""
        for run in runs:
            if (owner := self._owner_of(run)) not in ("", user):
                raise Denied(f"run {run!r} is {owner}'s: only {owner} or an admin may change or cancel it")

    def check_campaign(self, campaign: str, user: str | None) -> None:
        """Raises Denied where a campaign is another user's; None may work on everybody's."""
        if user is None or self._campaigns.get(campaign) == user or not campaign:
            return
        if not (runs := self._store.runs(campaign)):
            return
        owner = self._campaigns[campaign] = runs[-1].owner
        if owner not in ("", user):
            remedy = f"give yours another 'name:' in the fleet file, or ask {owner} or an admin"
            raise Denied(f"campaign {campaign!r} is {owner}'s, its newest run is {runs[-1].name!r}: {remedy}")
