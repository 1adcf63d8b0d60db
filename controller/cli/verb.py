"""What all verbs share: options that stand on each, errors that become messages and exit codes."""

from __future__ import annotations

import functools
import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from controller.config import Fleet, load_fleet
from edgefarm.errors import INTERRUPTED, EdgefarmError

F = TypeVar("F", bound=Callable[..., Any])
_LEAST_COLUMNS = 100
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and ends of lines
_FLEET_FILE = "edge.yaml"

FleetOption = Annotated[Path | None, typer.Option("--fleet", metavar="FILE", help="The fleet file (default: edge.yaml).")]
StateOption = Annotated[
    Path | None, typer.Option("--state", metavar="DIR", help="State folder, instead of .edgefarm/NAME beside the fleet file.")
]
ControllerOption = Annotated[
    str | None,
    typer.Option(
        "--controller",
        envvar="EDGEFARM_CONTROLLER",
        metavar="HOST:PORT",
        help="A running controller, instead of one hosted by this command.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def verb(function: F) -> F:
    """Turns our errors into a message on stderr (and a JSON document with --json) and the documented exit code."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            return function(*args, **kwargs)
        except EdgefarmError as error:
            fail(str(error), error.exit_code, error.code, as_json=bool(kwargs.get("json_")))
        except KeyboardInterrupt:
            fail("interrupted; what was measured is kept: the same command goes on", INTERRUPTED, "interrupted",
                 as_json=bool(kwargs.get("json_")))  # fmt: skip

    return wrapped  # type: ignore[return-value]


def plain(text: str) -> str:
    """Text for a terminal: without control characters, with which a device's words could do more than be read."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def tell(message: str, exit_code: int, code: str, *, as_json: bool) -> None:
    """Says what is wrong: on stderr, and as the JSON document on stdout where one was asked for."""
    print(plain(f"error: {message}"), file=sys.stderr)
    if as_json:
        print(json.dumps({"error": {"code": code, "message": message}, "exit_code": exit_code}))


def fail(message: str, exit_code: int, code: str, *, as_json: bool) -> NoReturn:
    """Ends the command with an error."""
    tell(message, exit_code, code, as_json=as_json)
    raise typer.Exit(exit_code)


def report_width() -> int | None:
    """Columns of the terminal that stdout is, at least those that a table needs; None if it is none."""
    return max(_LEAST_COLUMNS, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def fleet_of(path: Path | None, controller: str | None = None) -> Fleet:
    """The fleet file that a verb works with. Raises FleetFileError."""
    return load_fleet(path or Path(_FLEET_FILE), controller)


def state_of(fleet: Path | None, state: Path | None) -> Path:
    """The state folder that a verb looks into. Raises FleetFileError."""
    return state.absolute() if state else fleet_of(fleet).state(None)
