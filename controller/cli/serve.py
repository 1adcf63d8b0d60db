"""`controller serve`: the long-running controller."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from controller.cli.verb import JsonOption, verb
from edgefarm.errors import INTERRUPTED

_STATE = Path("edgefarm-controller")


@verb
def serve(
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="controller.yaml; default: all by default.")] = None,
    state: Annotated[Path, typer.Option("--state", metavar="DIR", help="All that it keeps.")] = _STATE,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="HOST:PORT",
            help="Where devices and users join; the next port serves them. Default: 0.0.0.0:7443. "
            "Port 0: any that are free, and the same ones again after a restart.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", metavar="HOST:PORT", help="Where Prometheus reads /metrics and /discovery, e.g. 127.0.0.1:7480."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Serve devices and users on other machines, until it is told to stop (SIGTERM: exit code 0).

    Example: controller serve --state /var/lib/edgefarm-controller
    """
    from controller.config.controller_file import load_controller
    from controller.serve import Serving

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.umask(0o077)  # models, keys and results are this user's only
    stop = threading.Event()
    received: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    settings = load_controller(config, listen)
    with Serving(state, replace(settings, metrics=metrics or settings.metrics)) as serving:
        doors = serving.server.doors
        if json_ and doors is not None:
            fingerprint = serving.registry.authority.fingerprint
            ready = {"join": doors.join, "main": doors.main, "socket": serving.server.address, "authority": fingerprint}
            if serving.metrics is not None:
                ready["metrics"] = serving.metrics.url
            print(json.dumps(ready), flush=True)
        stop.wait()
        logging.getLogger(__name__).info("stopping")
    if signal.SIGINT in received:
        raise typer.Exit(INTERRUPTED)
