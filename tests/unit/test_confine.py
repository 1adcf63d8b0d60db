"""What a confined process may still do: the filter, line by line, for both processors; and the kernel's own word, for this one."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.runner import confine

_PID = 4321
_ALLOW, _EPERM = 0x7FFF0000, 0x00050000 | errno.EPERM
_THREAD_FLAGS = 0x3D0F00  # what pthread_create asks clone for
_NUMBERS = {
    "x86_64": {
        "read": 0, "mmap": 9, "socketpair": 53, "exit": 60, "fcntl": 72, "futex": 202, "openat": 257, "getrandom": 318, "rseq": 334,
        "clone": 56, "clone3": 435, "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "kill": 62, "tgkill": 234, "tkill": 200,
        "ptrace": 101, "socket": 41, "prlimit64": 302, "io_uring_setup": 425, "unshare": 272, "fallocate": 285, "pidfd_send_signal": 424,
    },
    "aarch64": {
        "read": 63, "mmap": 222, "socketpair": 199, "exit": 93, "fcntl": 25, "futex": 98, "openat": 56, "getrandom": 278, "rseq": 293,
        "clone": 220, "clone3": 435, "execve": 221, "execveat": 281, "kill": 129, "tgkill": 131, "tkill": 130,
        "ptrace": 117, "socket": 198, "prlimit64": 261, "io_uring_setup": 425, "unshare": 97, "fallocate": 47, "pidfd_send_signal": 424,
    },
}  # fmt: skip
_FREE = ("read", "mmap", "socketpair", "exit", "fcntl", "futex", "openat", "getrandom", "rseq")
_REFUSED = ("fork", "vfork", "execve", "execveat", "tkill", "ptrace", "socket", "io_uring_setup", "unshare", "pidfd_send_signal")


def _decide(name: str, number: int, argument: int, audit: int | None = None) -> int:
    """Runs the filter as the kernel would (classic BPF, only what it uses)."""
    machine = confine._MACHINES[name]
    lines = list(confine._program(machine, _PID))
    seen = {0: number, 4: machine.audit if audit is None else audit, 16: argument}
    tests: dict[int, Callable[[int, int], bool]] = {
        0x15: lambda a, k: a == k, 0x35: lambda a, k: a >= k, 0x45: lambda a, k: bool(a & k),
    }  # fmt: skip
    position = accumulator = 0
    while True:
        code, if_true, if_false, operand = lines[position]
        position += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            accumulator = seen[operand]
        else:
            position += if_true if tests[code](accumulator, operand) else if_false


@pytest.mark.parametrize("name", _NUMBERS)
def test_the_filter_refuses_what_leads_out_and_nothing_else(name: str) -> None:
    numbers = _NUMBERS[name]
    for call in _FREE:
        assert [_decide(name, numbers[call], a) for a in (0, _PID, 1, 2**32 - 1)] == [_ALLOW] * 4, call
    for call in set(_REFUSED) & numbers.keys():
        assert [_decide(name, numbers[call], a) for a in (0, _PID, _THREAD_FLAGS)] == [_EPERM] * 3, call
    assert _decide(name, numbers["clone"], _THREAD_FLAGS) == _ALLOW
    assert _decide(name, numbers["clone"], 17) == _EPERM  # SIGCHLD alone: fork
    assert _decide(name, numbers["clone3"], 0) == 0x00050000 | errno.ENOSYS
    assert _decide(name, numbers["fallocate"], 3) == 0x00050000 | errno.EOPNOTSUPP
    for call in ("kill", "tgkill", "prlimit64"):
        assert [_decide(name, numbers[call], a) for a in (_PID, 0, 1, _PID + 1, 2**32 - 1)] == [_ALLOW] * 2 + [_EPERM] * 3, call


def test_the_other_abi_of_a_processor_is_no_way_out() -> None:
    assert _decide("x86_64", _NUMBERS["x86_64"]["read"], 0, audit=0x40000003) == _EPERM  # 32 bit
    assert _decide("x86_64", 0x40000000, 0) == _EPERM  # x32
    assert _decide("aarch64", 63, 0, audit=0x40000028) == _EPERM


_TRY = """
import json, os, resource, signal, socket, subprocess, sys, threading
from pathlib import Path
from agent.runner import confine
outside = Path(sys.argv[1])
confine.apply(Path.cwd())
def tried(call):
    try:
        call()
    except BaseException as error:
        return getattr(error, "strerror", None) or repr(error)
    return ""
def in_a_thread():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
print(json.dumps({name: tried(call) for name, call in {
    "thread": in_a_thread, "read": lambda: outside.joinpath("there").read_text(), "write": lambda: Path("new").write_text("x"),
    "reserve": lambda: os.posix_fallocate(os.open("new", os.O_RDWR), 0, 4096), "folder": lambda: os.makedirs("a/b"),
    "move": lambda: os.rename("new", "a/b/new"), "null": lambda: Path("/dev/null").write_text("x"),
    "own signal": lambda: os.kill(os.getpid(), 0), "own limit": lambda: resource.prlimit(0, resource.RLIMIT_CORE, (0, 0)),
    "fork": os.fork, "program": lambda: subprocess.run(["true"]), "socket": socket.socket,
    "signal": lambda: os.kill(os.getppid(), 0), "limit": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0)),
    "write outside": lambda: outside.joinpath("new").write_text("x"), "change outside": lambda: outside.joinpath("there").write_text("x"),
    "remove outside": lambda: outside.joinpath("there").unlink(), "take in": lambda: os.rename(outside / "there", "there"),
    "link in": lambda: os.link(outside / "there", "there"), "host name": lambda: __import__("socket").sethostname("x"),
}.items()}))
"""


@pytest.mark.skipif(
    any(how.startswith("not enforced") for how in confine.in_force().values()), reason=f"this kernel lacks a part: {confine.in_force()}"
)
def test_the_kernel_keeps_to_it(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "there").write_text("mine")
    done = subprocess.run([sys.executable, "-c", _TRY, str(outside)], cwd=inside, capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    free = {"thread", "read", "write", "reserve", "folder", "move", "null", "own signal", "own limit"}
    assert {name for name, error in found.items() if not error} == free
    assert {p.name: p.read_text() for p in outside.iterdir()} == {"there": "mine"}


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine.platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(confine, "_landlock_version", lambda: 0)
    found = confine.in_force()
    assert all("not enforced" in found[name] for name in ("processes", "network", "file_writes"))
    assert "riscv64" in found["processes"]
    assert found["privileges"] == "no new ones"
