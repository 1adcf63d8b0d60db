"""Runs the real `controller` command in a process of its own, and looks at what it left."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.forked import Forks

TIMEOUT_S = 240


@dataclass(frozen=True)
class Done:
    """An ended command."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document on stdout: there is nothing else."""
        document: dict[str, Any] = json.loads(self.stdout)
        return document


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment, without settings that would steer the command."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("EDGEFARM_")}
    return {**kept, **(changes or {})}


def start(arguments: Sequence[str], cwd: Path, changes: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Starts `controller ARGUMENTS` in a process group of its own, as a person does."""
    return subprocess.Popen(
        [sys.executable, "-m", "controller.cli", *arguments],
        cwd=cwd,
        env=environment(changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_interruptible,
    )


def _interruptible() -> None:
    """In the new process: whoever runs the tests in the background (nohup) has told it to ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


_idle: list[Forks] = []


def controller(*arguments: str, cwd: Path, changes: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S) -> Done:
    """Runs `controller ARGUMENTS` to its end, forked from a process that has imported it."""
    if not _idle:
        _idle.append(Forks())
        atexit.register(_idle[-1].close)
    forks = _idle.pop()
    done = Done(*forks.run(arguments, cwd, environment(changes), timeout_s))
    _idle.append(forks)
    assert done.code != -signal.SIGKILL, f"controller {' '.join(arguments)} did not end within {timeout_s} s:\n{done.stderr[-3000:]}"
    return done


def deploy(fleet: Path, *arguments: str, expected: int = 0, changes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """`controller deploy --json`; returns the report."""
    done = controller("deploy", "--fleet", str(fleet), "--json", *arguments, cwd=fleet.parent, changes=changes)
    assert done.code == expected, f"exit code {done.code}\n{done.stderr[-4000:]}\n{done.stdout[-1000:]}"
    return done.document


def processes_of(state: Path) -> list[psutil.Process]:
    """Processes that work for a state folder: its path stands in their command line or they run in it."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(state) in word for word in words):
            found.append(process)
    return found
