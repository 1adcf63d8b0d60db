"""Files that a runner is handed as open descriptors, because it runs as another user who sees no folder of the agent.

A descriptor to read becomes a link to /proc/self/fd, so that a runtime opens, or maps, the very file by a path; what the runner writes
stays in its own folder until it is copied into a descriptor to write. Standard library only: supervisor and child both import it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST = 200  # descriptors in one message; the kernel takes 253 (unix(7), SCM_RIGHTS)
_COPIED_BYTES = 1 << 20
_READ = ("path", "inputs", "shards", "golden")
_WRITTEN = {"evaluate": ("outputs", "golden")}


@dataclass(frozen=True)
class Handed:
    """What one request is about: `header` with the paths as the runner sees them; path there -> path here."""

    header: dict[str, Any]
    read: Mapping[str, Path]
    written: Mapping[str, Path]


def within(folder: str, request: Mapping[str, Any]) -> Handed:
    """The request for a runner whose folder is `folder`: every path of this device lies below it. A model's neighbours belong to it."""
    header = dict(request)
    read: dict[str, Path] = {}
    written: dict[str, Path] = {}
    outputs = _WRITTEN.get(str(request.get("do")), ())
    for key in {*_READ, *outputs} & request.keys():
        value = request[key]
        paths = [value] if isinstance(value, str) else list(value)
        found = written if key in outputs else read
        for path in map(Path, paths):
            found |= {folder + str(file): file for file in (_neighbours(path) if key == "path" else [path])}
        moved = [folder + path for path in paths]
        header[key] = moved[0] if isinstance(value, str) else moved
    return Handed(header, read, written)


def _neighbours(model: Path) -> list[Path]:
    return [model, *(p for p in sorted(model.parent.rglob("*")) if p != model and p.is_file() and not p.is_symlink())]


def open_for_runner(path: Path, *, write: bool) -> int:
    """Opens a file of the agent's for another user's process. The caller closes it. Raises OSError."""
    if write:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    # A link to /proc/self/fd opens the file anew, with its permissions. By path nobody else comes here: the state folder is closed.
    mode = os.fstat(descriptor).st_mode & 0o777
    if mode & 0o044 != 0o044:
        os.fchmod(descriptor, mode | 0o044)
    return descriptor


class Received:
    """The runner's side: descriptors as they arrive, and the places where requests expect their files."""

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._written: dict[str, int] = {}

    def receive(self, channel: socket.socket, most: int) -> bytes:
        """Like `channel.recv(most)`, keeping the descriptors that come along."""
        chunk, descriptors, _, _ = socket.recv_fds(channel, most, MOST)
        self._waiting += descriptors
        return chunk

    def place(self, files: Sequence[Sequence[str]]) -> None:
        """Gives the descriptors that came last their paths; an entry is (path, `r` or `w`)."""
        for path, how in files:
            descriptor = self._waiting.pop(0)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if how == "w":
                self._written[path] = descriptor
            else:
                os.symlink(f"/proc/self/fd/{descriptor}", path)

    def give_back(self) -> None:
        """Copies what was written into the descriptors that wait for it."""
        for path in [p for p in self._written if os.path.exists(p)]:
            with open(path, "rb") as source, open(self._written.pop(path), "wb") as target:
                while chunk := source.read(_COPIED_BYTES):
                    target.write(chunk)
