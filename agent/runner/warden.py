"""The first process of a runner's unit (deploy/systemd/edge-runner@.service): takes one connection, starts the runner, tells how it ended.

The connection's only message is JSON, `{"limits": {…}, "environment": {…}}`, with two descriptors: the runner's channel and its output.
Answers are lines of JSON: `{"pid": …, "folder": …, "isolation": {…}}`, then `{"status": …, "oom": …}`. The end of the connection
kills the runner; with this process ends the unit, and with the unit whatever else is left in its control group.
Standard library only, and small: it lives beside the runner while that measures, waiting.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

_CONNECTION = 3  # the first descriptor that systemd passes on (sd_listen_fds(3))
_MESSAGE_BYTES = 1 << 16
_CGROUPS = Path("/sys/fs/cgroup")


def main() -> None:
    """Serves the connection that systemd accepted."""
    connection = socket.socket(fileno=_CONNECTION)
    message, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 2)
    if len(descriptors) != 2:
        sys.exit("no runner was asked for")
    channel, output = descriptors
    folder, settings = os.getcwd(), json.loads(message)
    told = {"socket": channel, "parent": os.getpid(), "limits": settings["limits"], "in_unit": True}
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-m", "agent.runner.child", json.dumps(told)],
        stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(channel,), start_new_session=True,
        env={**os.environ, **settings["environment"], "HOME": folder, "TMPDIR": folder},
    )  # fmt: skip
    os.close(channel)
    os.close(output)
    _tell(connection, {"pid": process.pid, "folder": folder, "isolation": isolation()})
    _wait(connection, process)
    _tell(connection, {"status": process.wait(), "oom": _oom_killed()})


def _wait(connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
    """Until the runner has ended, or is ended because the agent let go."""
    ended = os.pidfd_open(process.pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(connection, select.POLLIN)
    if any(descriptor != ended for descriptor, _ in poll.poll()):
        process.kill()
    os.close(ended)


def _tell(connection: socket.socket, value: dict[str, object]) -> None:
    with contextlib.suppress(OSError):  # the agent is gone: so will be this process
        connection.sendall(json.dumps(value).encode() + b"\n")


def isolation() -> dict[str, str]:
    """What surrounds this process, as it sees it from within, in words."""
    return {
        "unit": _control_group().name or "none",
        "user": f"uid {os.getuid()}",
        "interfaces": ", ".join(_interfaces()) or "none",
        "memory_max": _limit("memory.max"),
        "tasks_max": _limit("pids.max"),
    }


def _interfaces() -> list[str]:
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    return [line.partition(":")[0].strip() for line in lines]


def _control_group() -> Path:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return Path(next((line.removeprefix("0::/") for line in lines if line.startswith("0::")), ""))


def _limit(file: str) -> str:
    try:
        return (_CGROUPS / _control_group() / file).read_text().strip()
    except OSError:
        return "not enforced: no such control group"


def _oom_killed() -> bool:
    try:
        lines = (_CGROUPS / _control_group() / "memory.events").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("oom_kill ") and not line.endswith(" 0") for line in lines)


if __name__ == "__main__":
    main()
