"""What a person types: `controller VERB`. Text and progress go to stderr; what was asked for goes to stdout."""

from controller.cli.app import app


def main() -> None:
    """Entry point of the `controller` command."""
    app()


__all__ = ["app", "main"]
