"""What INTERFACE promises and this version does not do: refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Iterator

from controller.config.lines import Document, Key, dotted
from controller.config.schema import Canary, FleetFile, Health, Rollout, Watch
from edgefarm.errors import NotAvailable


def refuse_what_is_not_built(file: FleetFile, document: Document) -> None:
    """Raises NotAvailable for the first thing in the file that this version cannot do."""
    for key, what in _missing(file):
        line = document.line(key)
        place = f"{document.path}:{line}" if line else str(document.path)
        raise NotAvailable(f"{place}: {dotted(key)}: {what} is not available in this version")


def _missing(file: FleetFile) -> Iterator[tuple[Key, str]]:
    yield from _measure(file)
    if file.select.per != "device":
        yield ("select", "per"), f"'{file.select.per}' (only 'device')"
    if file.select.max_variants is not None:
        yield ("select", "max_variants"), "a limit of variants per fleet"
    yield from _rollout(file)


def _measure(file: FleetFile) -> Iterator[tuple[Key, str]]:
    if file.measure.live != "wait":
        yield ("measure", "live"), f"'{file.measure.live}' (no model is served yet: only 'wait')"


def _rollout(file: FleetFile) -> Iterator[tuple[Key, str]]:
    rollout, default = file.rollout, Rollout()
    if rollout.activate == "serve":
        yield ("rollout", "activate"), "'serve' (only 'file' and 'none')"
    if rollout.window is not None:
        yield ("rollout", "window"), "a window for rollouts"
    if rollout.canary != Canary():
        yield ("rollout", "canary"), "another canary than {per: variant, count: 1}"
    if rollout.waves != default.waves:
        yield ("rollout", "waves"), "other waves than [25%, 100%]"
    if rollout.switch != default.switch:
        yield ("rollout", "switch"), "another switch than 'overlap'"
    if rollout.health != Health():
        yield ("rollout", "health"), "another health check than the default"
    if file.watch != Watch():
        yield ("watch",), "watching after the rollout"
