"""What a person types: `controller VERB`. Text and progress go to stderr; what was asked for goes to stdout."""

import sys
from typing import Any

import typer

from controller.cli.app import app
from controller.cli.verb import tell
from edgefarm.errors import UserError

# typer brings a copy of click, or click itself: this is what either raises about options and arguments.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def main() -> None:
    """Entry point of the `controller` command."""
    try:
        sys.exit(app(prog_name="controller", standalone_mode=False))
    except _UsageError as error:
        _tell_usage(error)
        sys.exit(UserError.exit_code)


def _tell_usage(error: Any) -> None:
    """The usage for people; the JSON document where one was asked for, since no verb ran that could print it."""
    if "--json" in sys.argv:
        verb = error.ctx.command_path if error.ctx else "controller"
        tell(f"{error.format_message().rstrip('.')}; see '{verb} --help'", UserError.exit_code, UserError.code, as_json=True)
    else:
        error.show()


__all__ = ["app", "main"]
