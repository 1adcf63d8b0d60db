"""A device of another architecture: a Debian root folder for arm64 whose programs QEMU translates, one by one, on this processor.

Inference is some hundred times slower than on the processor itself: good for correctness, for nothing else.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.e2e.machine import run

PACKAGES = "python3,python3-venv,libstdc++6,passwd"
CACHE = Path(tempfile.gettempdir()) / "edgefarm-root" / "arm64"
_TRANSLATOR = "qemu-aarch64-static"
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_OURS = "edgefarm-aarch64"
# How a program for arm64 begins (ELF, 64 bit, little-endian, executable or shared, machine 183), and which of these bits count.
_MAGIC = r"\x7fELF\x02\x01\x01\x00" + r"\x00" * 8 + r"\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00" + r"\xff" * 8 + r"\xfe\xff\xff\xff"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Private mounts and processes: when the first process ends, so do the others, and nothing stays mounted.
_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
_ENTER = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && {more}exec chroot "$0" env -i ' + _PATH + ' HOME=/root sh -c "$1"'


def _skip(why: str) -> None:
    pytest.skip(f"NOT TESTED: an arm64 device under emulation: {why}")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Within it this machine runs arm64 programs. Skips, saying why, where that can't be."""
    tools = (_TRANSLATOR, "mmdebstrap", "unshare", "chroot", "make")
    if platform.machine() == "aarch64":
        _skip("this machine is one itself")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        _skip(f"no {', '.join(missing)} here (Debian: qemu-user-static, mmdebstrap, util-linux, coreutils, make)")
    if os.geteuid() != 0:
        _skip("only root can have its programs translated")
    try:
        registered = _register()
    except (OSError, subprocess.CalledProcessError) as error:
        _skip(f"the kernel takes no translator: {error}")
    try:
        yield
    finally:
        if registered:
            (_BINFMT / _OURS).write_text("-1")


def _register() -> bool:
    """Whether it was done here, or the distribution had done it. Raises OSError, CalledProcessError."""
    if not (_BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)], check=True, capture_output=True)
    if any("enabled" in entry.read_text() for entry in _BINFMT.glob("qemu-aarch64*")) or (_BINFMT / _OURS).exists():
        return False
    # F: the kernel opens the translator now, so that it need not be in the root folder.
    (_BINFMT / "register").write_text(f":{_OURS}:M::{_MAGIC}:{_MASK}:{shutil.which(_TRANSLATOR)}:F")
    return True


def _make_root() -> None:
    """Some minutes, once: all of its packages are set up by translated programs."""
    unfinished = CACHE.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    # With mounts of its own: what a killed run had mounted there must not be found when the rest is removed.
    command = ["mmdebstrap", "--arch=arm64", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(unfinished)]
    made = subprocess.run(["unshare", "--mount", *command], capture_output=True, text=True)
    if made.returncode != 0:
        _skip(f"no Debian root folder: {made.stderr[-500:]}")
    unfinished.rename(CACHE)


class Arm64:
    """The device, inside `translated()`. Use it as a context manager: its root folder is a fresh copy."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"

    def __enter__(self) -> Arm64:
        if not CACHE.is_dir():
            _make_root()
        run("cp", "-a", str(CACHE), str(self.root))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def __call__(self, script: str, *, check: bool = True, timeout_s: float = 900.0, sys: bool = False) -> str:
        """Runs a shell script there, as root; returns what it printed, on stderr too. `sys`: with this machine's /sys."""
        done = subprocess.run(
            self._command(script, sys), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=timeout_s,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise AssertionError(f"{script}: {done.returncode}\n{done.stdout}")
        return done.stdout

    @contextlib.contextmanager
    def running(self, script: str, log: IO[bytes]) -> Iterator[None]:
        """A script that runs until the block ends."""
        process = subprocess.Popen(self._command(script, False), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def _command(self, script: str, sys: bool) -> list[str]:
        enter = _ENTER.format(more='mount --rbind /sys "$0/sys" && ' if sys else "")
        return [*_NAMESPACES, "sh", "-c", enter, str(self.root), script]
