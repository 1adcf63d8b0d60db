"""What a runner started, and what outlived it: found in /proc by the session that it is in, or by the mark that it inherited.

The kernel ends a process group at once, but a process can leave it. Where the runner is confined (`agent.runner.confine`) there is
nothing to find. A program that sheds both session and environment is found by a service manager's control group only.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

MARK = "EDGEFARM_RUNNER"
_ROUNDS = 50  # each finds what was started during the one before


def new_mark() -> str:
    """A value of the variable MARK that no other runner has."""
    return secrets.token_hex(8)


def end(leader: int, mark: str) -> None:
    """Kills the members of the session `leader` and whoever inherited `mark`, except the leader.

    Call before the leader is reaped: its number can't be anyone else's yet.
    """
    ended: set[int] = set()
    for _ in range(_ROUNDS):
        found = set(_members(leader, f"{MARK}={mark}".encode())) - ended
        if not found:
            return
        for pid in found:
            with contextlib.suppress(OSError):  # gone by itself
                os.kill(pid, signal.SIGKILL)
        ended |= found


def _members(leader: int, mark: bytes) -> Iterator[int]:
    for name in filter(str.isdigit, os.listdir("/proc")):
        pid = int(name)
        if pid not in (leader, os.getpid()) and (_session(pid) == leader or mark in _environment(pid)):
            yield pid


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
