"""Toolchains: stacks of libraries for passes that would conflict with the command's own, or weigh too much to come along with it.

Each is an environment of its own, made by `controller toolchain install NAME` from a pinned list (`NAME.txt` beside this file). A pass that
names one runs there, with our own packages as the command has them (`optimizer.toolchains.child`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgefarm.digest import atomic_write
from edgefarm.errors import Busy, StorageError, UserError

HOME_VARIABLE = "EDGEFARM_TOOLCHAINS"
_DONE = "edgefarm.json"
_LAST_LINES = 3


@dataclass(frozen=True)
class Toolchain:
    """One stack. `about`: what it is for; `gigabytes`: what it takes on the disk, about."""

    name: str
    about: str
    gigabytes: float

    @property
    def requirements(self) -> Path:
        """The pinned list."""
        return Path(__file__).with_name(f"{self.name}.txt")


TOOLCHAINS: Mapping[str, Toolchain] = {
    "litert": Toolchain("litert", "ONNX and torch models as TFLite: to_tflite (litert-torch)", 2.2),
    "keras": Toolchain("keras", "Keras models as the source, and tfmot (TensorFlow, TensorFlow Model Optimization Toolkit)", 2.5),
    "nncf": Toolchain("nncf", "integers for OpenVINO's plugins: quantize_openvino (NNCF)", 0.7),
}


def home() -> Path:
    """Where toolchains are: EDGEFARM_TOOLCHAINS, else the user's data folder."""
    if given := os.environ.get(HOME_VARIABLE):
        return Path(given).absolute()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local/share") / "edgefarm/toolchains"


def find(name: str) -> Toolchain:
    """The toolchain of that name. Raises UserError."""
    if name not in TOOLCHAINS:
        raise UserError(f"unknown toolchain {name!r}; there are {', '.join(TOOLCHAINS)}")
    return TOOLCHAINS[name]


def interpreter(name: str) -> Path | None:
    """The Python of an installed toolchain; None if it is not there, or not as this version of edgefarm wants it."""
    folder = home() / name
    try:
        done = json.loads((folder / _DONE).read_bytes())
    except (OSError, ValueError):
        return None
    python = folder / "bin/python"
    return python if done == _wanted(find(name)) and python.exists() else None


def versions(name: str, distributions: tuple[str, ...]) -> dict[str, str]:
    """Distribution -> version, of those that are in a toolchain; read from metadata, nothing is imported."""
    python = interpreter(name)
    if python is None:
        return {}
    places = [str(path) for path in python.parents[1].glob("lib/python*/site-packages")]
    found = {}
    for distribution in distributions:
        for each in metadata.distributions(name=distribution, path=places):
            found[distribution] = each.version
            break
    return found


def install(name: str) -> Path:
    """Makes a toolchain, or makes it anew where its list or this Python changed; pip's words go to stderr. Returns its folder.

    Raises:
        UserError: unknown; pip did not find or build what it needs.
        Busy: another command is installing it.
        StorageError: the folder cannot be written.
    """
    toolchain = find(name)
    folder = home() / name
    try:
        home().mkdir(parents=True, exist_ok=True)
        with _alone(home() / f".{name}.lock", name):
            if interpreter(name) is None:
                shutil.rmtree(folder, ignore_errors=True)
                _make(toolchain, folder)
    except OSError as error:
        raise StorageError(f"{error.filename or folder}: {error.strerror}: set {HOME_VARIABLE} to a folder with room") from error
    return folder


def _make(toolchain: Toolchain, folder: Path) -> None:
    _run([sys.executable, "-m", "venv", str(folder)], toolchain)
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    _run([*pip, "--requirement", str(toolchain.requirements)], toolchain)
    atomic_write(folder / _DONE, json.dumps(_wanted(toolchain)).encode())


def _run(command: list[str], toolchain: Toolchain) -> None:
    """A step whose output goes to stderr. Raises UserError with its last words."""
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
            said = [*said, line.strip()][-_LAST_LINES:]
    if process.returncode:
        why = " | ".join(filter(None, said))
        raise UserError(f"toolchain {toolchain.name}: {' '.join(command[:4])} ended with {process.returncode}: {why}")


def _wanted(toolchain: Toolchain) -> dict[str, str]:
    """What an environment must have been made from to be of use."""
    return {
        "requirements": hashlib.sha256(toolchain.requirements.read_bytes()).hexdigest(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }


@contextlib.contextmanager
def _alone(lock: Path, name: str) -> Iterator[None]:
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"toolchain {name} is being installed by another command") from None
        yield
    finally:
        os.close(descriptor)
