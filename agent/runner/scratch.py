"""Folders that runners write into. What lies there was made by a model: its depth, names and permissions are not to be relied on."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def folder(parent: Path | None, prefix: str) -> Iterator[Path]:
    """A new folder, removed at the end with all that is in it. `parent` None: where temporary files go."""
    path = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
    try:
        yield path
    finally:
        remove(path)


def remove(path: Path) -> None:
    """Removes a tree. What cannot be removed stays, without an error.

    `shutil.rmtree` fails on a tree that is deeper than Python's stack or whose paths are longer than the kernel takes; here inner
    folders are moved to the top before they are emptied.
    """
    names = (path / f".{secrets.token_hex(4)}-{number}" for number in itertools.count())
    with contextlib.suppress(OSError):
        path.chmod(0o700)
    waiting = _clear(path)
    while waiting:
        emptied = waiting.pop()
        for inner in _clear(emptied):
            with contextlib.suppress(OSError):
                waiting.append(inner.rename(next(names)))
        with contextlib.suppress(OSError):
            emptied.rmdir()
    with contextlib.suppress(OSError):
        path.rmdir()


def is_own_file(path: Path) -> bool:
    """Whether `path` is a plain file and no other name of anything: no link, device or pipe, which a model could have put there."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1


def _clear(path: Path) -> list[Path]:
    """Removes the files in a folder; returns the folders in it, which can be moved and read afterwards."""
    folders = []
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)
                    folders.append(Path(entry.path))
                else:
                    os.unlink(entry.path)
    return folders
