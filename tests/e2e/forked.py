"""`controller` commands in processes that need not import it first: forked from one that has.

`python -m tests.e2e.forked` reads one command per line of stdin (JSON: arguments, cwd, environment, files for stdout and stderr) and
answers with its process id, then with its exit code. Its end of stdin ends it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[2]


class Forks:
    """The process that has the imports. It runs one command at a time."""

    def __init__(self) -> None:
        # OpenBLAS starts threads where it is imported, and a fork would not have them.
        surroundings = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.e2e.forked"]
        started = subprocess.Popen(command, cwd=_ROOT, env=surroundings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.wait()  # it has left a process behind that is not ours: tests look at which children they have
        assert started.stdin is not None
        assert started.stdout is not None
        self._orders, self._answers = started.stdin, started.stdout

    def run(self, arguments: Sequence[str], cwd: Path, surroundings: Mapping[str, str], timeout_s: float) -> tuple[int, str, str]:
        """Runs `controller ARGUMENTS` to its end, or kills its process group; returns its exit code, stdout and stderr."""
        with tempfile.TemporaryDirectory() as folder:
            files = [str(Path(folder, name)) for name in ("stdout", "stderr")]
            order = {"arguments": arguments, "cwd": str(cwd), "surroundings": surroundings, "files": files}
            print(json.dumps(order), file=self._orders, flush=True)
            killing = threading.Timer(timeout_s, os.killpg, (self._number(), signal.SIGKILL))
            killing.start()
            code = self._number()
            killing.cancel()
            stdout, stderr = (Path(file).read_text() for file in files)
        return code, stdout, stderr

    def close(self) -> None:
        self._orders.close()
        self._answers.close()

    def _number(self) -> int:
        return int(self._answers.readline())


def _serve() -> None:
    for name in ("controller.cli", "onnx"):
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork has one thread only, and finds the locks of the others as they were"
    gc.freeze()  # a fork that collects would copy all of it
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            _become_controller(**order)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become_controller(arguments: list[str], cwd: str, surroundings: dict[str, str], files: list[str]) -> None:
    """This process goes on as `python -m controller.cli ARGUMENTS`, which ends it."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(surroundings)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.path[0], sys.argv[1:] = cwd, arguments
    runpy.run_module("controller.cli", run_name="__main__", alter_sys=True)
    sys.exit()  # a verb that returned


if __name__ == "__main__" and not os.fork():
    _serve()
