"""What INTERFACE promises and this version does not do: refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from controller.config.lines import Document, Key, dotted
from controller.config.schema import Canary, Constraints, FleetFile, Health, Rollout, Watch
from edgefarm.errors import NotAvailable

_LATER_FORMATS = {".keras", ".h5"}


def refuse_what_is_not_built(file: FleetFile, document: Document) -> None:
    """Raises NotAvailable for the first thing in the file that this version cannot do."""
    for key, what in _missing(file):
        line = document.line(key)
        place = f"{document.path}:{line}" if line else str(document.path)
        raise NotAvailable(f"{place}: {dotted(key)}: {what} is not available in this version")


def _missing(file: FleetFile) -> Iterator[tuple[Key, str]]:
    yield from _model(file)
    yield from _devices(file)
    yield from _measure(file)
    yield from _objectives(("select", "objective"), file.select.objective, ("select", "constraints"), file.select.constraints)
    if file.select.per != "device":
        yield ("select", "per"), f"'{file.select.per}' (only 'device')"
    if file.select.max_variants is not None:
        yield ("select", "max_variants"), "a limit of variants per fleet"
    yield from _rollout(file)


def _model(file: FleetFile) -> Iterator[tuple[Key, str]]:
    path = file.model.path
    if PurePath(path).suffix in _LATER_FORMATS or ".py:" in path:
        yield ("model", "path"), f"'{path}': only .onnx, .tflite and .xml sources; another format"
    if file.data.train is not None:
        yield ("data", "train"), "training by passes"


def _devices(file: FleetFile) -> Iterator[tuple[Key, str]]:
    for index, entry in enumerate(file.devices):
        key: Key = ("devices", index)
        yield from _objectives((*key, "objective"), entry.objective, (*key, "constraints"), entry.constraints)


def _measure(file: FleetFile) -> Iterator[tuple[Key, str]]:
    scenario = file.measure.scenario
    if scenario.kind != "paced":
        yield ("measure", "scenario", "kind"), f"the scenario '{scenario.kind}' (only 'paced')"
    for name in ("rate_per_s", "batch_sizes", "duration_s"):
        if getattr(scenario, name) is not None:
            yield ("measure", "scenario", name), f"'{name}' (only one inference after the other)"
    if file.measure.live != "wait":
        yield ("measure", "live"), f"'{file.measure.live}' (no model is served yet: only 'wait')"
    for name in ("window", "where"):
        if getattr(file.measure, name) is not None:
            yield ("measure", name), f"'measure.{name}'"


def _objectives(objective_key: Key, objective: str | None, key: Key, constraints: Constraints | None) -> Iterator[tuple[Key, str]]:
    if objective == "energy":
        yield objective_key, "energy as the objective"
    if constraints is not None and constraints.energy_mj is not None:
        yield (*key, "energy_mj"), "a limit of energy"


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
