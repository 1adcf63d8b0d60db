"""What a runner may use, and how that is enforced. Supervisor and child both import it: neither numpy nor a runtime.

Chosen by trying. RLIMIT_AS counts what a runtime merely reserves (ONNX Runtime maps 4 times what it touches; OpenBLAS and the loader
die of it at import), so it is not used. RLIMIT_DATA counts private writable memory, touched or not: a failed allocation then comes back
as a clean error, but thread stacks and arenas count as well. So the limit proper is on resident memory, watched by the supervisor, and
RLIMIT_DATA lies a fixed slack above it, where it catches what allocates faster than the supervisor looks. Shared memory that is not mapped
(a memfd) is seen by neither: a unit's control group counts it; elsewhere the kernel ends the runner before anyone else (`oom_score_adj`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from agent.runner import confine

WATCH_NS = 50_000_000
DATA_SLACK_BYTES = 512 * 2**20
FILE_BYTES = 2**30
WRITTEN_BYTES = 2 * FILE_BYTES
CRAMPED_BYTES = 2**24  # a limit below that is the disk's fault, whatever a model writes
MORE_TASKS = 512
_DESCRIPTORS = 1024
_MEMORY_SHARE = 0.8
_DISK_SHARE = 0.5
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class ProcessLimits:
    """Limits of one runner: resident bytes, bytes of a file it writes, tasks (threads of its user) beyond those of now, and the
    cores that it may use (empty: all)."""

    memory_bytes: int
    file_bytes: int = FILE_BYTES
    more_tasks: int = MORE_TASKS
    cpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What a process uses: resident bytes, threads, and bytes that it wrote so far, deleted files and its output included."""

    resident_bytes: int
    tasks: int
    written_bytes: int


def effective_memory(asked_bytes: int) -> int:
    """The limit in force: what was asked for, at most (and, for 0, exactly) 80 % of what is available now."""
    import psutil  # late: every runner imports this module, and has no use for that one

    share = int(psutil.virtual_memory().available * _MEMORY_SHARE)
    return min(asked_bytes, share) if asked_bytes > 0 else share


def writable(folder: Path) -> int:
    """Bytes that a runner may write in all: at most half of what is free where `folder` is."""
    status = os.statvfs(folder)
    return min(WRITTEN_BYTES, int(status.f_bavail * status.f_frsize * _DISK_SHARE))


def apply(limits: ProcessLimits) -> None:
    """Limits this process, for good. Call before anything large is imported."""
    if limits.cpus:
        with contextlib.suppress(OSError):  # none of them is its own: conditions tell which it had
            os.sched_setaffinity(0, limits.cpus)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, limits.file_bytes)
    _lower(resource.RLIMIT_NOFILE, _DESCRIPTORS)
    _lower(resource.RLIMIT_DATA, limits.memory_bytes + DATA_SLACK_BYTES)
    _lower(resource.RLIMIT_NPROC, _tasks_of_user() + limits.more_tasks)
    with contextlib.suppress(OSError):  # where /proc is hidden: the kernel then chooses by size
        Path("/proc/self/oom_score_adj").write_text("1000")


def die_with(parent: int) -> None:
    """Kills this process when the thread that spawned it ends; leaves at once if `parent` is gone already.

    The end of the socket says the same, but is not seen inside a native call that hangs.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def limits_in_force(*, in_unit: bool = False) -> dict[str, str]:
    """What protects this device from a runner, in words, by limit."""
    root = os.geteuid() == 0
    by_kernel = "; by the kernel not, since the agent runs as root" if root else "; RLIMIT_NPROC, as many above the user's present ones"
    backstop = f"RLIMIT_DATA {DATA_SLACK_BYTES >> 20} MiB above it" if _can_be_lowered(resource.RLIMIT_DATA) else "no limit by the kernel"
    return {
        "memory": f"resident memory is watched every {WATCH_NS // 1_000_000} ms; {backstop}",
        "time": "wall clock of the supervisor, by phase; the process group and whatever left it are killed",
        "threads": f"{MORE_TASKS}, watched{by_kernel}",
        "file_size": f"RLIMIT_FSIZE {FILE_BYTES >> 20} MiB",
        "written": f"{WRITTEN_BYTES >> 20} MiB in all, at most half of the free disk, watched",
        "core_dumps": "off",
        "lifetime": "PR_SET_PDEATHSIG and the end of the socket",
        **confine.in_force(),
        **({"file_reads": "what its unit shows it, and files that it is handed"} if in_unit else {}),
    }


def usage(pid: int) -> Usage:
    """What a process uses now; zeros once it is gone, and for what the kernel does not tell (proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        tasks, resident = int(fields[17]), int(fields[21]) * resource.getpagesize()
    except (OSError, IndexError):
        return Usage(0, 0, 0)
    return Usage(resident, tasks, _written_bytes(pid))


def _written_bytes(pid: int) -> int:
    """The larger of what went through write calls and what files took, which mapped ones do without a call."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:  # a kernel without task I/O accounting
        return 0
    counts = dict(line.split(": ", 1) for line in lines)
    return max(int(counts["wchar"]), int(counts["write_bytes"]))


def kernel_oom_kills() -> int:
    """How many processes the kernel has killed for memory since boot; 0 if it does not tell."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _lower(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _can_be_lowered(kind: int) -> bool:
    """Whether a limit is what one sets it to: QEMU's user emulation takes those of memory without a word and does nothing."""
    soft, hard = resource.getrlimit(kind)
    tried = (sys.maxsize if soft == resource.RLIM_INFINITY else soft) - 1  # not one that anybody would feel
    resource.setrlimit(kind, (tried, hard))
    try:
        return resource.getrlimit(kind)[0] == tried
    finally:
        resource.setrlimit(kind, (soft, hard))


def _tasks_of_user() -> int:
    count, user = 0, os.getuid()
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError):  # processes come and go
            if entry.name.isdigit() and entry.stat().st_uid == user:
                count += len(os.listdir(f"/proc/{entry.name}/task"))
    return count
