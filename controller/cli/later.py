"""Verbs that INTERFACE promises and this version does not have: they refuse, by name."""

from __future__ import annotations

from collections.abc import Callable

import typer

from controller.cli.verb import JsonOption, verb
from edgefarm.errors import NotAvailable

_VERBS = {
    "optimize": "variants only; 'deploy --until optimize' makes them",
    "export": "the winners' files; 'report --format json' names them",
    "promote": "promote a canary",
    "pause": "pause a rollout",
}


def register(app: typer.Typer) -> None:
    """Adds the verbs to the command."""
    for name, what in _VERBS.items():
        app.command(
            name,
            help=f"Not available in this version: {what}.",
            context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        )(_refusing(name))


def _refusing(name: str) -> Callable[..., None]:
    @verb
    def refuse(context: typer.Context, json_: JsonOption = False) -> None:
        raise NotAvailable(f"controller {name}: not available in this version ({_VERBS[name]})")

    return refuse
