"""What a confined process may still do: the filter, line by line, for both processors; and the kernel's own word, for this one."""

from __future__ import annotations

import errno
import json
import stat
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
        "chmod": 90, "fchmod": 91, "fchmodat": 268, "chown": 92, "fchownat": 260, "setxattr": 188, "fremovexattr": 199, "shmget": 29,
        "mq_open": 240, "keyctl": 250, "open_by_handle_at": 304, "prctl": 157, "mkdir": 83, "shmdt": 67,
        "ioctl": 16, "setpriority": 141, "sched_setattr": 314, "sched_setaffinity": 203,
    },
    "aarch64": {
        "read": 63, "mmap": 222, "socketpair": 199, "exit": 93, "fcntl": 25, "futex": 98, "openat": 56, "getrandom": 278, "rseq": 293,
        "clone": 220, "clone3": 435, "execve": 221, "execveat": 281, "kill": 129, "tgkill": 131, "tkill": 130,
        "ptrace": 117, "socket": 198, "prlimit64": 261, "io_uring_setup": 425, "unshare": 97, "fallocate": 47, "pidfd_send_signal": 424,
        "fchmod": 52, "fchmodat": 53, "fchownat": 54, "setxattr": 5, "fremovexattr": 16, "shmget": 194, "mq_open": 180, "keyctl": 219,
        "open_by_handle_at": 265, "prctl": 167, "mkdirat": 34, "shmdt": 197,
        "ioctl": 29, "setpriority": 140, "sched_setattr": 274, "sched_setaffinity": 122,
    },
}  # fmt: skip
_FREE = (
    "read", "mmap", "socketpair", "exit", "fcntl", "futex", "openat", "getrandom", "rseq", "mkdir", "mkdirat", "shmdt", "sched_setaffinity",
)  # fmt: skip
_REFUSED = (
    "fork", "vfork", "execve", "execveat", "tkill", "ptrace", "socket", "io_uring_setup", "unshare", "pidfd_send_signal", "chmod", "fchmod",
    "fchmodat", "chown", "fchownat", "setxattr", "fremovexattr", "shmget", "mq_open", "keyctl", "open_by_handle_at", "setpriority",
    "sched_setattr",
)  # fmt: skip


def _decide(name: str, number: int, argument: int, audit: int | None = None, second: int = 0) -> int:
    """Runs the filter as the kernel would (classic BPF, only what it uses)."""
    machine = confine._MACHINES[name]
    lines = list(confine._program(machine, _PID))
    seen = {0: number, 4: machine.audit if audit is None else audit, 16: argument, 24: second}
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
    for call in set(_FREE) & numbers.keys():
        assert [_decide(name, numbers[call], a) for a in (0, _PID, 1, 2**32 - 1)] == [_ALLOW] * 4, call
    for call in set(_REFUSED) & numbers.keys():
        assert [_decide(name, numbers[call], a) for a in (0, _PID, _THREAD_FLAGS)] == [_EPERM] * 3, call
    assert _decide(name, numbers["clone"], _THREAD_FLAGS) == _ALLOW
    assert _decide(name, numbers["clone"], 17) == _EPERM  # SIGCHLD alone: fork
    assert _decide(name, numbers["clone3"], 0) == 0x00050000 | errno.ENOSYS
    assert _decide(name, numbers["fallocate"], 3) == 0x00050000 | errno.EOPNOTSUPP
    assert [_decide(name, numbers["prctl"], option) for option in (1, 38, 15)] == [_EPERM, _ALLOW, _ALLOW]  # 1: PR_SET_PDEATHSIG
    for call, commands in {"fcntl": (1, 4, 8, 15, 16), "ioctl": (0x5401, 0x8900, 0x8901, 0x8902, 0x8903)}.items():
        decided = [_decide(name, numbers[call], 3, second=command) for command in commands]
        assert [d == _EPERM for d in decided] == [command in (8, 15, 0x8901, 0x8902) for command in commands], call
        assert set(decided) == {_ALLOW, _EPERM}
    for call in ("kill", "tgkill", "prlimit64"):
        assert [_decide(name, numbers[call], a) for a in (_PID, 0, 1, _PID + 1, 2**32 - 1)] == [_ALLOW] * 2 + [_EPERM] * 3, call


def test_the_other_abi_of_a_processor_is_no_way_out() -> None:
    assert _decide("x86_64", _NUMBERS["x86_64"]["read"], 0, audit=0x40000003) == _EPERM  # 32 bit
    assert _decide("x86_64", 0x40000000, 0) == _EPERM  # x32
    assert _decide("aarch64", 63, 0, audit=0x40000028) == _EPERM


_TRY = """
import ctypes, fcntl, json, os, resource, signal, socket, stat, subprocess, sys, threading
from pathlib import Path
from agent.runner import confine
outside, given = Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]]
parent, libc = Path(f"/proc/{os.getppid()}"), ctypes.CDLL(None, use_errno=True)
confine.apply(Path.cwd(), given if given else None)
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
def called(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
print(json.dumps({name: tried(call) for name, call in {
    "thread": in_a_thread, "read": lambda: outside.joinpath("given/there").read_text(), "write": lambda: Path("new").write_text("x"),
    "list": lambda: os.listdir(outside / "given"), "read own": lambda: Path("new").read_text(), "process": lambda: open("/proc/self/maps"),
    "libraries": lambda: os.listdir(os.path.dirname(os.__file__)), "processors": lambda: open("/proc/cpuinfo"),
    "clock": lambda: os.listdir("/sys/devices/system/cpu"), "random": lambda: open("/dev/urandom", "rb"),
    "read outside": lambda: outside.joinpath("there").read_text(), "list outside": lambda: os.listdir(outside),
    "read password": lambda: open("/etc/passwd"), "memory": lambda: open(parent / "mem", "rb"),
    "environment": lambda: parent.joinpath("environ").read_bytes(), "files": lambda: os.open(parent / "fd/1", os.O_WRONLY),
    "open": lambda: os.chmod(outside / "there", 0o777), "give away": lambda: os.chown("new", 1, 1),
    "mark": lambda: os.setxattr("new", "user.x", b""), "shared memory": lambda: called("shmget", 0, 4096, 0o600),
    "outlive": lambda: called("prctl", 1, 0, 0, 0, 0), "affinity": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "slow down": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19), "idle": lambda: os.sched_setscheduler(os.getppid(), 5,
    os.sched_param(0)), "signal by a socket": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid()),
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
@pytest.mark.parametrize("reads_all", [False, True])
def test_the_kernel_keeps_to_it(tmp_path: Path, reads_all: bool) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    (outside / "given").mkdir(parents=True)
    for path in (outside / "there", outside / "given/there"):
        path.write_text("mine")
    given = [] if reads_all else [str(outside / "given"), str(tmp_path / "absent")]
    command = [sys.executable, "-c", _TRY, str(outside), *given]
    done = subprocess.run(command, cwd=inside, capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    free = {
        "thread", "read", "write", "reserve", "folder", "move", "null", "own signal", "own limit", "list", "read own", "process",
        "libraries", "processors", "clock", "random", "affinity", *(("read outside", "list outside", "read password") if reads_all else ()),
    }  # fmt: skip
    assert {name for name, error in found.items() if not error} == free
    assert {p.name: p.read_text() for p in outside.iterdir() if p.is_file()} == {"there": "mine"}
    assert stat.S_IMODE((outside / "there").stat().st_mode) & 0o022 == 0


@pytest.mark.skipif(not confine._landlock_version(), reason="NOT TESTED: what Landlock lets through: this kernel has none")
def test_a_single_file_may_be_given(tmp_path: Path) -> None:
    for name in ("inputs", "key"):
        (tmp_path / name).write_text(name)
    (tmp_path / "own").mkdir()
    program = "import sys; from pathlib import Path; from agent.runner import confine\nconfine.apply(Path.cwd(), [Path(sys.argv[1])])\n"
    program += "print(Path(sys.argv[1]).read_text())\ntry: open('../key')\nexcept PermissionError: print('closed')"
    command = [sys.executable, "-c", program, str(tmp_path / "inputs")]
    done = subprocess.run(command, cwd=tmp_path / "own", capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "inputs\nclosed\n"


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine.platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(confine, "_landlock_version", lambda: 0)
    found = confine.in_force()
    assert all("not enforced" in found[name] for name in ("processes", "network", "file_reads", "file_writes"))
    assert "riscv64" in found["processes"]
    assert found["privileges"] == "no new ones"


@pytest.mark.parametrize(("kernel", "filtered"), [("s390x\n", False), (None, True)])
def test_a_translated_program_is_not_filtered_by_numbers_that_are_not_the_kernel_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kernel: str | None, filtered: bool
) -> None:
    monkeypatch.setattr(confine, "_KERNEL", tmp_path / "arch")
    if kernel is not None:
        (tmp_path / "arch").write_text(kernel)
    monkeypatch.setattr(confine, "_LIBC", type("Libc", (), {"syscall": staticmethod(lambda *_: 0)}))
    assert confine.in_force()["network"].startswith("seccomp: no sockets" if filtered else "not enforced: no seccomp filter")
