"""The command and its verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from controller.cli import act, bench, compare, connect, deploy, doctor, later, look, members, rollback, serve, toolchain
from edgefarm import __version__

app = typer.Typer(
    name="controller",
    help="Optimise a model, measure the candidates on your own devices, roll out the best one per device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
)


def _version(shown: bool) -> None:
    if shown:
        print(f"edgefarm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    return


app.command("deploy")(deploy.deploy)
app.command("bench")(bench.bench)
app.command("compare")(compare.compare)
app.command("devices")(look.devices)
app.command("runs")(look.runs)
app.command("show")(look.show)
app.command("report")(look.report)
app.command("rollback")(rollback.rollback)
app.command("doctor")(doctor.doctor)
app.command("serve")(serve.serve)
app.command("login")(connect.login)
app.command("cancel")(act.cancel)
app.command("drain")(act.drain)
app.command("lease")(act.lease)
app.command("release")(act.release)
app.add_typer(members.user, name="user")
app.add_typer(members.token, name="token")
app.add_typer(members.device, name="device")
app.add_typer(toolchain.toolchain, name="toolchain")
later.register(app)
