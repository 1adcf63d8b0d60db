"""`measure` of a fleet file: combinations that say nothing, refused with the line of the key that is wrong; and what the rest means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from controller.config.enrolled import Selector, matches, told
from controller.config.lines import Document, Key
from controller.config.schema import Constraints, FleetFile, ScenarioSection
from edgefarm.model import Scenario
from edgefarm.windows import parse

_SCENARIO: Key = ("measure", "scenario")
# Keys beside `kind`: those that a kind needs, and those that it may have.
_NEEDS: Mapping[str, tuple[str, ...]] = {"server": ("rate_per_s",), "sustained": ("duration_s",)}
_MAY: Mapping[str, tuple[str, ...]] = {"paced": ("rate_per_s",), "offline": ("batch_sizes",), "server": ("duration_s",)}
_WHY = {
    "rate_per_s": "requests per second that arrive, e.g. rate_per_s: 30",
    "duration_s": "how long each launch runs without a pause, e.g. duration_s: 120",
}
_GIVEN = "the rate is given, so all that keep up with it are alike"
_BATCHED = "under 'offline' a latency is that of a whole batch, which nobody waits for: ask for 'throughput', or measure another scenario"


@dataclass(frozen=True)
class Where:
    """`measure.where`: the selector, and how to say that no device matches."""

    selector: Selector
    document: Document

    def only_on(self, labels: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
        """Of the devices of one class, those that measure for it. Raises FleetFileError if there is none.

        Args:
            labels: of the devices of the class, by name.
        """
        found = tuple(sorted(name for name, known in labels.items() if matches(self.selector, known)))
        if not found:
            asked = told(self.selector)
            others = ", ".join(sorted(labels))
            message = f"no device with {asked} is of the same class as {others}: nothing could be measured for it; add one, or leave it out"
            raise self.document.error(message, ("measure", "where"))
        return found


def check_measure(file: FleetFile, document: Document) -> None:
    """Raises FleetFileError for the first thing that makes no sense."""
    scenario = file.measure.scenario
    for key, message in _problems(scenario, file):
        raise document.error(message, key)
    if file.measure.window is not None:
        try:
            parse(file.measure.window)
        except ValueError as error:
            raise document.error(str(error), ("measure", "window")) from None
    inherited = file.select.objective if any(entry.objective is None for entry in file.devices) else None
    aims: list[tuple[Key, str | None, Constraints | None]] = [(("select",), inherited, file.select.constraints)]
    aims += [(("devices", index), entry.objective, entry.constraints) for index, entry in enumerate(file.devices)]
    for where, objective, constraints in aims:
        for name, message in _wrong_aims(scenario, objective, constraints):
            raise document.error(message, (*where, *name))


def scenario_of(section: ScenarioSection) -> Scenario:
    """The scenario that orders carry."""
    return Scenario(section.kind, section.rate_per_s, tuple(section.batch_sizes or ()), round((section.duration_s or 0.0) * 1e9))


def where_of(file: FleetFile, document: Document) -> Where | None:
    """`measure.where`, if it is given."""
    return None if file.measure.where is None else Where(file.measure.where, document)


def _problems(scenario: ScenarioSection, file: FleetFile) -> Iterator[tuple[Key, str]]:
    kind = scenario.kind
    needs, may = _NEEDS.get(kind, ()), _MAY.get(kind, ())
    for name in ("rate_per_s", "batch_sizes", "duration_s"):
        given = getattr(scenario, name) is not None
        if name in needs and not given:
            yield (*_SCENARIO, "kind"), f"'{kind}' needs '{name}': {_WHY[name]}"
        if given and name not in (*needs, *may):
            takers = [f"'{k}'" for k in ("paced", "offline", "sustained", "server") if name in (*_NEEDS.get(k, ()), *_MAY.get(k, ()))]
            yield (*_SCENARIO, name), f"'{kind}' has no '{name}'; {' and '.join(takers)} {'have' if len(takers) > 1 else 'has'}"
    sizes: Sequence[int] = scenario.batch_sizes or ()
    if len(set(sizes)) < len(sizes):
        yield (*_SCENARIO, "batch_sizes"), f"a batch size stands there twice: {', '.join(map(str, sizes))}"
    budget_s = file.measure.budget.minutes_per_device * 60
    if scenario.duration_s is not None and 2 * scenario.duration_s > budget_s:
        least = 2 * scenario.duration_s / 60
        yield (
            ("measure", "budget", "minutes_per_device"),
            (
                f"{budget_s / 60:g} minutes hold no launch of a candidate and the baseline, {scenario.duration_s:g} s each: "
                f"give more than {least:g}, or a shorter measure.scenario.duration_s"
            ),
        )
    if file.measure.where is not None and not file.measure.where:
        yield ("measure", "where"), "names no label: leave it out to measure on every device"


def _wrong_aims(scenario: ScenarioSection, objective: str | None, constraints: Constraints | None) -> Iterator[tuple[Key, str]]:
    """Objectives and limits that a scenario can't tell anything about."""
    limits = {} if constraints is None else constraints.model_dump(exclude_none=True)
    rate = scenario.rate_per_s
    if rate is not None and objective == "throughput":
        yield ("objective",), f"'throughput' with rate_per_s {rate:g}: {_GIVEN}; ask for a latency, or measure 'offline'"
    if rate is not None and (least := limits.get("throughput_per_s", 0.0)) > rate:
        yield ("constraints", "throughput_per_s"), f"{least:g} is above measure.scenario.rate_per_s, {rate:g}: nothing reaches it"
    if scenario.kind == "offline":
        if objective is not None and objective.startswith("latency"):
            yield ("objective",), f"'{objective}': {_BATCHED}"
        for name in limits:
            if name.startswith("latency"):
                yield ("constraints", name), _BATCHED
