"""`controller toolchain list|install`: stacks of pass libraries in environments of their own.

They are this machine's, whatever controller or state folder a script names to all verbs.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from controller.cli.verb import ControllerOption, FleetOption, JsonOption, StateOption, verb
from optimizer import toolchains

toolchain = typer.Typer(help="Stacks of libraries for passes, each in an environment of its own.", no_args_is_help=True)


@toolchain.command("list")
@verb
def list_(fleet: FleetOption = None, state: StateOption = None, json_: JsonOption = False, controller: ControllerOption = None) -> None:
    """List the toolchains, what they are for, and where those are that are installed.

    Example: controller toolchain list
    """
    rows = []
    for each in toolchains.TOOLCHAINS.values():
        python = toolchains.interpreter(each.name)
        folder = None if python is None else str(python.parents[1])
        rows.append({"name": each.name, "about": each.about, "gigabytes": each.gigabytes, "folder": folder})
    if json_:
        print(json.dumps({"toolchains": rows}))
        return
    for row in rows:
        there = f"installed in {row['folder']}" if row["folder"] else f"not installed; about {row['gigabytes']} GB"
        print(f"{row['name']:10} {row['about']}; {there}")


@toolchain.command("install")
@verb
def install(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One that `list` names.")],
    fleet: FleetOption = None,
    state: StateOption = None,
    json_: JsonOption = False,
    controller: ControllerOption = None,
) -> None:
    """Install a toolchain, or renew it; what is there already is left as it is.

    Example: controller toolchain install litert
    """
    folder = toolchains.install(name)
    print(json.dumps({"name": name, "folder": str(folder)}) if json_ else f"{name} is installed in {folder}")
