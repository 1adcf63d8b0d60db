"""What the `controller` script calls: says what is missing where only the agent was installed."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command; exits 2 if what it needs is not installed."""
    try:
        from controller.cli import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("agent", "controller", "edgefarm", "optimizer"):
            raise
        print(f"error: the command needs: pip install 'edgefarm[controller]' (no module {error.name!r})", file=sys.stderr)
        raise SystemExit(2) from None
    run()
