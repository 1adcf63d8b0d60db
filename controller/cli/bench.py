"""`controller bench`: given files on the fleet, no selection."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from controller.bench import bench as measured
from controller.cli.deploy import controlled, percent
from controller.cli.verb import ControllerOption, FleetOption, JsonOption, StateOption, fleet_of, plain, report_width, verb
from controller.events import Events
from controller.report import FORMS, render
from controller.sources import ready
from controller.trials import Trials
from controller.workload import load_workload
from edgefarm.digest import digest_file
from edgefarm.errors import UserError

_KIND = "bench"


@verb
def bench(
    variant: Annotated[list[Path], typer.Option("--variant", metavar="FILE", help="A model file; may be repeated.")],
    fleet: FleetOption = None,
    form: Annotated[str, typer.Option("--format", metavar="|".join(FORMS), help="Form of the report.")] = "table",
    json_: JsonOption = False,
    events: Annotated[Path | None, typer.Option(metavar="FILE", help="Append progress as JSON lines.")] = None,
    allow_unreachable: Annotated[str, typer.Option(metavar="PERCENT", help="Share of devices that may be lost, e.g. 10%.")] = "0%",
    state: StateOption = None,
    controller: ControllerOption = None,
) -> None:
    """Measure given model files on every device of the fleet, beside the fleet's own model. Nothing is chosen or rolled out.

    Example: controller bench --fleet edge.yaml --variant int8.onnx --variant pruned.onnx
    """
    if form not in FORMS:
        raise UserError(f"--format {form}: not a form; one of {', '.join(FORMS)}")
    for path in variant:
        if not path.is_file():
            raise UserError(f"--variant {path}: no such file; give a model file")
    allowed = percent(allow_unreachable, "--allow-unreachable")
    given = fleet_of(fleet, controller)
    folder = given.state(state)
    files = [(path.absolute(), str(path)) for path in variant]
    question = {"variants": [[name, digest_file(path)] for path, name in files]}
    with Events(events) as sink:
        loaded = ready(given, folder, sink)
        workload = load_workload(loaded)
        with controlled(loaded, folder, f"{loaded.name}-{_KIND}") as (enlisted, control):
            trials = Trials(enlisted, control, workload, folder, sink, _KIND, question)
            document = measured(trials, enlisted, workload, files, sink, allowed)
    print(json.dumps(document) if json_ else plain(render(document, form, report_width())), end="\n" if json_ else "")
    if code := document["exit_code"]:
        print(plain(f"error: {document['summary']}"), file=sys.stderr)
        raise typer.Exit(code)
