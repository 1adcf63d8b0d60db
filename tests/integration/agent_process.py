"""A real `edge-agent run` for tests, with its secret pipe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.fakes.controller import SECRET


class AgentProcess:
    """Use it as a context manager: the process is gone afterwards, whatever happened."""

    def __init__(self, address: str, state: Path, *arguments: str, secret: str = SECRET, name: str = "dev") -> None:
        self.log = state.with_suffix(".log")
        reader, self.pipe = os.pipe()
        os.write(self.pipe, secret.encode() + b"\n")
        command = [
            sys.executable, "-m", "agent.cli", "run", "--controller", address, "--name", name, "--state", str(state), "--threads", "1",
            "--secret-fd", str(reader), "--measure-lock", str(state.with_suffix(".lock")), *arguments,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, pass_fds=(reader,), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        os.close(reader)

    def __enter__(self) -> AgentProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.close_pipe()

    @property
    def output(self) -> str:
        return self.log.read_text()

    def close_pipe(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self, timeout_s: float = 30.0) -> int:
        return self.process.wait(timeout_s)
