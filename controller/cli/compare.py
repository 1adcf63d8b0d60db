"""`controller compare`: is one model, variant or run faster than another?"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from controller.cli.connect import looking
from controller.cli.deploy import controlled, percent
from controller.cli.look import find_run
from controller.cli.verb import ControllerOption, FleetOption, JsonOption, StateOption, fleet_of, plain, verb
from controller.compare import document as documents
from controller.compare.drive import compare as measured
from controller.compare.drive import question
from controller.compare.forms import as_junit, table
from controller.compare.outcome import problem
from controller.compare.rules import MARGIN, Rules
from controller.compare.sides import RunSide, Side, both, report_of
from controller.compare.stored import find_all
from controller.events import Events
from controller.sources import ready
from controller.trials import Trials
from controller.workload import load_workload
from edgefarm.errors import StorageError

_KIND = "compare"
_MOST = 100.0  # a limit of 10,000 % is a slip


@verb
def compare(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A model file, RUN:VARIANT (fashion@3:winner), or RUN (fashion@3).")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The same, of what is held against it.")],
    fleet: FleetOption = None,
    max_slowdown: Annotated[
        str | None,
        typer.Option("--max-slowdown", metavar="PERCENT", help="Exit 7 if NEW is surely slower by more, 8 if none can say."),
    ] = None,
    max_energy: Annotated[
        str | None, typer.Option("--max-energy", metavar="PERCENT", help="The same of energy per inference; devices need a power sensor.")
    ] = None,
    within: Annotated[
        str | None, typer.Option("--within", metavar="PERCENT", help="What counts as the same; default: the limit, else 1%.")
    ] = None,
    json_: JsonOption = False,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Also write JUnit: a test case per device.")] = None,
    events: Annotated[Path | None, typer.Option(metavar="FILE", help="Append progress as JSON lines.")] = None,
    allow_unreachable: Annotated[str, typer.Option(metavar="PERCENT", help="Share of devices that may be lost, e.g. 10%.")] = "0%",
    state: StateOption = None,
    controller: ControllerOption = None,
) -> None:
    """Say per device whether NEW is faster than BASE, slower, or the same within some percent.

    Files and variants are measured now, both in each launch, until that can be said. Of two runs the stored numbers of the winners are
    compared. An interrupted comparison goes on; one that ended is measured anew.

    Example: controller compare old.onnx new.onnx --fleet edge.yaml --max-slowdown 2%
    """
    sides = both(base, new)
    rules = _rules(max_slowdown, max_energy, within)
    allowed = percent(allow_unreachable, "--allow-unreachable")
    if isinstance(sides[0], RunSide) and not sides[0].variant:
        answer = _stored(sides, rules, allowed, fleet, state, controller)
    else:
        given = fleet_of(fleet, controller)
        folder = given.state(state)
        with Events(events) as sink:
            loaded = ready(given, folder, sink)
            workload = load_workload(loaded)
            with controlled(loaded, folder, f"{loaded.name}-{_KIND}") as (enlisted, control):
                trials = Trials(enlisted, control, workload, folder, sink, _KIND, question(sides, rules))
                answer = measured(trials, control, sides, rules, sink, allowed)
    if junit is not None:
        _write(junit, as_junit(answer))
    print(json.dumps(answer) if json_ else plain(table(answer)), end="\n" if json_ else "")
    if code := answer["exit_code"]:
        print(plain(f"error: {answer['summary']}"), file=sys.stderr)
        raise typer.Exit(code)


def _rules(max_slowdown: str | None, max_energy: str | None, within: str | None) -> Rules:
    slowdown = None if max_slowdown is None else percent(max_slowdown, "--max-slowdown", _MOST)
    energy = None if max_energy is None else percent(max_energy, "--max-energy", _MOST)
    margin = percent(within, "--within") if within is not None else slowdown if slowdown else MARGIN
    return Rules(margin, slowdown, energy)


def _stored(
    sides: tuple[Side, Side], rules: Rules, allowed: float, fleet: Path | None, state: Path | None, controller: str | None
) -> dict[str, Any]:
    """Compares what the reports of two runs hold."""
    with looking(fleet, state, controller) as look:

        def report(name: str) -> Mapping[str, Any]:
            return look.report(find_run(look, name))

        first, second = (report_of(side, report) for side in sides if isinstance(side, RunSide))
    found, missing = find_all(first, second, rules)
    findings = [f.finding for f in found]
    ended = problem(findings, missing, rules, allowed)
    head = documents.head(str(sides[0]), str(sides[1]), rules, findings, missing, ended)
    return {**head, "devices": [documents.stored(f, rules) for f in found]}


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"--junit {path}: cannot be written: {error.strerror}") from error
