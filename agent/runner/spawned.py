"""A runner as a child of the agent, in a session of its own: the way everywhere, and the only one where systemd starts none."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.runner import family
from agent.runner.limits import ProcessLimits


class Spawned:
    """One running child. The kernel kills it when the thread that made it ends.

    Args:
        folder: its working folder.
        files: what it may read besides libraries, absolute.
        limits: what it limits itself to.
        environment: all of its variables.
        command: what to run instead of the runner, for tests.

    Attributes:
        pid: its process.
        channel: for requests and answers.
        output: what it prints.
        oom_killed: whether its kernel said so; it does not for a child.
    """

    oom_killed = False

    def __init__(
        self, folder: Path, files: Sequence[Path], limits: ProcessLimits, environment: Mapping[str, str], command: tuple[str, ...]
    ) -> None:  # fmt: skip
        self._mark = family.new_mark()
        self.channel, theirs = socket.socketpair()
        settings = json.dumps({"socket": theirs.fileno(), "parent": os.getpid(), "limits": asdict(limits), "in_unit": False})
        try:
            # No preexec_fn: it would fork with gRPC's threads. The child limits itself instead.
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", *command, settings, *map(str, files)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0, cwd=folder,
                env={**environment, family.MARK: self._mark}, pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
        except BaseException:
            self.channel.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        assert self._process.stdout is not None
        self.output = self._process.stdout

    def hand_over(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The request as it is: a child opens the agent's files itself."""
        return request

    def shown(self, text: str) -> str:
        """A text of the runner's, as it is."""
        return text

    def has_ended(self) -> bool:
        """Whether it is gone; it is not reaped by asking."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end(self) -> int:
        """Kills it and whatever it started; returns its exit status, negative for a signal."""
        # Before it is reaped: the group's number can't be anyone else's yet.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        family.end(self.pid, self._mark)
        return self._process.wait()
