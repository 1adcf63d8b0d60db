"""A runtime whose models do harm: stands for native code that goes wrong. `python -m tests.fakes.hostile_runtime` is a runner that has it.

A model is a JSON file, `{"when": "load" | "run", "deed": NAME, "target": PATH}`; the deeds are the functions below. Each is bounded, so
that a runner that is not contained leaves a machine that lives on.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from agent.runner import child, frames
from agent.runtimes import RUNTIMES, Array, Library, RuntimeEntry, RuntimeFailure, TensorSpec
from edgefarm.model import Options

NAME = "hostile"
_FOREVER_S = 600
_LIBC = ctypes.CDLL(None, use_errno=True)


class FakeHostileModel:
    """x: float32[N, 16] -> y: float32[N, 16], and the deed."""

    inputs = (TensorSpec("x", "float32", (None, 16)),)
    outputs = (TensorSpec("y", "float32", (None, 16)),)
    chosen: dict[str, str] = {}  # noqa: RUF012
    chosen: ClassVar[dict[str, str]] = {}

    def __init__(self, deed: str, target: str, *, now: bool) -> None:
        self._deed, self._target, self._now = deed, target, now
        if now:
            self._do()

    def run(self, feeds: dict[str, Array]) -> list[Array]:
        if not self._now:
            self._do()
        return [feeds["x"]]

    def _do(self) -> None:
        globals()[self._deed](self._target)

    def placement(self, feeds: dict[str, Array]) -> dict[str, int]:
        return {}

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


class FakeHostileRuntime:
    """Opens such a file."""

    def version(self) -> str:
        return "1"

    def providers(self) -> list[str]:
        return ["cpu"]

    def selection(self, provider: str) -> Options:
        return {}

    def requested(self, options: Options) -> str:
        return ""

    def prepare(self, options: Options) -> None:
        pass

    def resting(self, options: Options) -> Options:
        return options

    def load(self, path: Path, options: Options) -> FakeHostileModel:
        model = json.loads(path.read_text())
        return FakeHostileModel(model["deed"], model["target"], now=model["when"] == "load")

    def explain(self, error: Exception) -> RuntimeFailure | None:
        return None

    def probe_model(self, folder: Path) -> Path:
        raise NotImplementedError


def segfault(target: str) -> None:
    ctypes.string_at(0)


def abort(target: str) -> None:
    os.abort()


def illegal_instruction(target: str) -> None:
    signal.raise_signal(signal.SIGILL)


def bus_error(target: str) -> None:
    with open("short", "w+b") as file:
        file.truncate(mmap.PAGESIZE)
        view = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        file.truncate(0)
        view[0] = 1


def stack_overflow(target: str) -> None:
    @ctypes.CFUNCTYPE(None)
    def again() -> None:
        again()

    sys.setrecursionlimit(2**31 - 1)
    again()


def leave(target: str) -> None:
    os._exit(0)


def stop_itself(target: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hang_deaf(target: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(_FOREVER_S)


def hang_in_native_code(target: str) -> None:
    ctypes.PyDLL(None).pause()  # holds the interpreter's lock


def fork_bomb(target: str) -> None:
    for _ in range(50):
        if (pid := _LIBC.fork()) == 0:
            time.sleep(_FOREVER_S)
        if pid < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def leave_a_daemon(target: str) -> None:
    """A grandchild in a session of its own that holds the socket and goes on."""
    if os.fork() == 0:
        os.setsid()
        time.sleep(_FOREVER_S)
    os._exit(0)


def other_program(target: str) -> None:
    os.execv("/bin/sleep", ["sleep", str(_FOREVER_S)])


def change_group(target: str) -> None:
    os.setpgid(0, 0)  # refused: it leads its session
    time.sleep(_FOREVER_S)


def threads_bomb(target: str) -> None:
    threading.stack_size(1 << 16)
    for _ in range(1000):
        threading.Thread(target=time.sleep, args=(_FOREVER_S,), daemon=True).start()
    time.sleep(_FOREVER_S)


def memory_bomb(target: str) -> None:
    kept = []
    while True:
        kept.append(bytearray(b"x" * (16 << 20)))


def write_outside(target: str) -> None:
    Path(target).write_text("owned")


def remove_outside(target: str) -> None:
    os.unlink(target)


def read_outside(target: str) -> None:
    raise ValueError(f"it says: {Path(target).read_text()}")


def read_the_supervisor(target: str) -> None:
    Path(f"/proc/{os.getppid()}/environ").read_bytes()


def open_to_all(target: str) -> None:
    os.chmod(target, 0o666)


def leave_shared_memory(target: str) -> None:
    """A segment that nobody's end removes."""
    if _LIBC.shmget(0, 64 << 20, 0o600) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def large_file(target: str) -> None:
    with open("large", "wb") as file:
        file.truncate(1 << 40)


def fill_disk(target: str) -> None:
    block = b"x" * (1 << 20)
    for _ in range(1000):
        with open("deleted", "wb") as file:
            os.unlink("deleted")
            file.write(block)
    time.sleep(_FOREVER_S)


def deep_folders(target: str) -> None:
    """Deeper than Python's stack, with a path longer than the kernel takes, and closed."""
    top = os.open(".", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deep")
        os.chdir("deep")
    Path("file").write_text("x")
    os.fchdir(top)
    with contextlib.suppress(PermissionError):  # where it is confined
        os.chmod("deep", 0)


def open_sockets(target: str) -> None:
    with socket.socket() as outside:
        outside.bind(("127.0.0.1", 0))


def kill_supervisor(target: str) -> None:
    os.kill(os.getppid(), signal.SIGKILL)


def signal_by_descriptor(target: str) -> None:
    """Has the kernel send the signal when the socket can be read."""
    import fcntl

    fcntl.fcntl(_channel(), fcntl.F_SETOWN, os.getppid())


def slow_supervisor(target: str) -> None:
    os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)


def limit_supervisor(target: str) -> None:
    import resource

    resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (3, 3))


def flood_output(target: str) -> None:
    line = b"\x1b]0;owned\x07" * 100_000
    for _ in range(100):
        os.write(2, line)
    raise ValueError("\x1b[2J said at the end, with half a character: \ud800")


def flood_output_for_ever(target: str) -> None:
    line = b"x" * (1 << 16)
    while True:
        os.write(1, line)


def say_garbage(target: str) -> None:
    _say(b"\xff" * 4096)


def claim_a_large_frame(target: str) -> None:
    _say(struct.pack("<4sIQ", b"efr1", 2, 2**60))


def send_half_a_frame(target: str) -> None:
    _say(struct.pack("<4sIQ", b"efr1", 2, 2**25) + b"{}")
    time.sleep(_FOREVER_S)


def send_without_end(target: str) -> None:
    _say(struct.pack("<4sIQ", b"efr1", 2, 2**25) + b"{}")
    while True:
        _say(b"x" * 1000)
        time.sleep(0.001)


def nest_deeply(target: str) -> None:
    text = b'{"ok":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    _say(struct.pack("<4sIQ", b"efr1", len(text), 0) + text)


def answer_nothing(target: str) -> None:
    _say(frames.encode({}))


def answer_zero(target: str) -> None:
    _say(frames.encode({"ok": {"first_inference_ns": -1, "not_finite": 10**400}}))


def tell_another_failure(target: str) -> None:
    _say(frames.encode({"failure": {"kind": "device_lost", "detail": []}}))


def answer_with_a_zip_bomb(target: str) -> None:
    """Answers the first inference, and then the launch that has not been asked for yet."""
    summary = {
        "n": 9, "mean_ns": 1.0, "p50_ns": 1, "p90_ns": 1, "p99_ns": 1, "warmup_inferences": 1, "burst_p50_ns": [1],
        "burst_min_ns": [1], "samples_per_s": 0.0, "batches": [], "regime": "flat", "unsettled": 0,
        "disturbed": 0, "left_out": 0,
    }  # fmt: skip
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in ("a.npy", "a.disturbed.npy"):
            bomb.writestr(name, bytes(40 << 20))  # together more than a frame may hold
    _say(frames.encode({"ok": {"first_inference_ns": 1, "not_finite": 0, "samples": 1}}))
    _say(frames.encode({"ok": {"contenders": {"a": summary}}}, archive.getvalue()))
    time.sleep(_FOREVER_S)


def close_connection(target: str) -> None:
    os.close(_channel())
    time.sleep(_FOREVER_S)


def link_samples(target: str) -> None:
    """Puts a link to another file of the device wherever the raw samples might be written."""
    os.symlink(target, "samples.npz")
    with contextlib.suppress(PermissionError):
        os.symlink(target, "../samples.npz")


def link_outputs(target: str) -> None:
    """Puts another file of the device where the outputs of an accuracy pass are looked for, and says that all is done."""
    for name in ("outputs.npz", "golden.npz"):
        os.symlink(target, name)
    _say(frames.encode({"ok": {"first_inference_ns": 1, "not_finite": 0, "samples": 1}}))
    _say(frames.encode({"ok": {"n": 1}}))
    time.sleep(_FOREVER_S)


def _channel() -> int:
    return int(json.loads(sys.argv[1])["socket"])


def _say(content: bytes) -> None:
    with socket.socket(fileno=os.dup(_channel())) as channel:
        channel.sendall(content)


def write_model(path: Path, deed: str, when: str, target: Path) -> Path:
    """The file of a model that does `deed`, in a folder of its own."""
    path.parent.mkdir()
    path.write_text(json.dumps({"when": when, "deed": deed, "target": str(target)}))
    return path


def sample() -> dict[str, list[Any]]:
    """What such a model is fed with."""
    return {"x": [np.ones((1, 16), np.float32)]}


if __name__ == "__main__":
    RUNTIMES[NAME] = RuntimeEntry("tests.fakes.hostile_runtime:FakeHostileRuntime", ("json",), NAME, (Library("json", NAME),))
    child.main()
