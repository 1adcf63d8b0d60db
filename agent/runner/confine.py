"""Takes from a runner what no model needs: other processes, sockets, files that are not its own, root's powers. Standard library only.

Needs no privileges and costs nothing where time is measured: the filter looks at system calls, of which an inference makes few.
Sources: seccomp(2), bpf(2), https://docs.kernel.org/userspace-api/landlock.html, capabilities(7). What a kernel lacks is left out;
`in_force` says which. A list of what is refused, not of what is allowed: runtimes and drivers need more than could be known here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import stat
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_GET_ACTION_AVAIL = 1, 2
_SPEC_ALLOW = 1 << 2  # else older kernels slow all of the process's code down, against attacks that are not the matter here
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF instructions
_NUMBER, _ARCHITECTURE, _ARGUMENT, _SECOND = 0, 4, 16, 24  # offsets in struct seccomp_data; the low halves of the first two arguments
_X32 = 0x40000000
_CLONE_THREAD = 0x10000
_CAPABILITIES_V3, _CAP_DAC_READ_SEARCH = 0x20080522, 2

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every architecture
_WRITE_FILE, _READ_FILE, _READ_FOLDER, _REFER, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 13, 1 << 14
_CHANGES = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))  # write, remove, and make entries of any kind
_READS = _READ_FILE | _READ_FOLDER
_OF_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE  # what a rule about a file may give
_SCOPES = 0b11  # abstract Unix sockets and signals stay within the runner

# What libraries are made of and look at. Of /proc the kernel shows a confined process no other's memory, files or environment.
_SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/opt", "/nix/store", "/gnu/store", "/proc", "/sys", "/etc/ld.so.cache", "/etc/localtime",
    "/etc/os-release", "/etc/OpenCL", "/etc/vulkan", "/etc/nv_tegra_release",
)  # fmt: skip
_ACCELERATORS = frozenset({"accel", "bus", "dma_heap", "dri", "nvgpu", "nvidia-caps"})  # folders in /dev


@dataclass(frozen=True)
class _Machine:
    """System call numbers of one architecture (asm/unistd.h).

    `own` may only name the caller or 0 in their first argument; `commands` may not have any of two values in their second.
    """

    audit: int
    seccomp: int
    capset: int
    clone: int
    fallocate: int
    prctl: int
    own: tuple[int, ...]  # kill, tgkill, prlimit64
    commands: tuple[tuple[int, tuple[int, int]], ...]  # fcntl, ioctl
    refused: tuple[int, ...]


_CLONE3 = 435
_OWNER = (8, 15), (0x8901, 0x8902)  # F_SETOWN, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP: the kernel then sends signals to whoever is named
# pidfd_send_signal, io_uring_setup (it does what is refused here), pidfd_getfd, fchmodat2, setxattrat, removexattrat
_REFUSED_ANYWHERE = (424, 425, 438, 452, 463, 466)
# Line by line: socket, execve, execveat, tkill, rt_sigqueueinfo, rt_tgsigqueueinfo, ptrace, process_vm_readv, process_vm_writev, unshare,
# setns, bpf, userfaultfd, perf_event_open; on x86-64 fork and vfork
# fchmod, fchmodat, fchown, fchownat, the same of setxattr and removexattr, by path, link and descriptor; on x86-64 chmod, chown, lchown:
# Landlock has no word for them, and what the agent owns the runner may change
# shmget, semget, msgget, mq_open: memory that outlives its maker; add_key, request_key, keyctl; open_by_handle_at; setpriority,
# sched_setparam, sched_setscheduler, sched_setattr, ioprio_set: they can make the agent wait
_MACHINES = {
    "x86_64": _Machine(
        0xC000003E, 317, 126, 56, 285, 157, (62, 234, 302), tuple(zip((72, 16), _OWNER)),
        (41, 59, 322, 200, 129, 297, 101, 310, 311, 272, 308, 321, 323, 298, 57, 58,
         91, 268, 93, 260, 188, 189, 190, 197, 198, 199, 90, 92, 94,
         29, 64, 68, 240, 248, 249, 250, 304, 141, 142, 144, 314, 251, *_REFUSED_ANYWHERE),
    ),
    "aarch64": _Machine(
        0xC00000B7, 277, 91, 220, 47, 167, (129, 131, 261), tuple(zip((25, 29), _OWNER)),
        (198, 221, 281, 130, 138, 240, 117, 270, 271, 97, 268, 280, 282, 241,
         52, 53, 55, 54, 5, 6, 7, 14, 15, 16,
         194, 190, 186, 180, 217, 218, 219, 265, 140, 118, 119, 274, 30, *_REFUSED_ANYWHERE),
    ),
}  # fmt: skip
_LIBC = ctypes.CDLL(None, use_errno=True)
_KERNEL = Path("/proc/sys/kernel/arch")
_NO_LANDLOCK = "not enforced: no Landlock in this kernel"


def apply(folder: Path, given: Sequence[Path] | None) -> None:
    """Confines this process and the threads that it will start, for good.

    Call while it has one thread. Neither `fork` nor another program works afterwards.

    Args:
        folder: the only one that it may write to, apart from device files.
        given: what it may read besides `folder` and libraries: files, and folders with all in them. None: whatever it sees.
    """
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return  # Linux before 3.5
    machine = _machine()
    if machine is not None and os.geteuid() == 0:
        _drop_capabilities(machine)
    if _landlock_version() > 0:
        with contextlib.suppress(OSError):
            _restrict_files(folder, given)
    if machine is not None and _filters_calls(machine):
        _filter_calls(machine, os.getpid())


def in_force() -> dict[str, str]:
    """In words, by what is confined, asked from the kernel."""
    machine, landlock = _machine(), _landlock_version()
    filtered = machine is not None and _filters_calls(machine)
    missing = f"not enforced: no seccomp filter on this kernel or processor ({platform.machine()})"
    return {
        "processes": "seccomp: no fork, no other program, no signal to others, no tracing" if filtered else missing,
        "network": "seccomp: no sockets" if filtered else missing,
        "file_reads": f"Landlock {landlock}: libraries, its model, its inputs, its own folder" if landlock else _NO_LANDLOCK,
        "file_writes": f"Landlock {landlock}: its own folder and device files" if landlock else _NO_LANDLOCK,
        "privileges": "no new ones" + ("; of root's only reading any file is left" if machine and os.geteuid() == 0 else ""),
    }


def _machine() -> _Machine | None:
    """None where numbers are not known: another processor, or a 32-bit process on this one."""
    return _MACHINES.get(platform.machine()) if sys.maxsize > 2**32 else None


def _landlock_version() -> int:
    """0 where the kernel has none, or refuses it."""
    return max(0, int(_LIBC.syscall(_CREATE_RULESET, None, 0, 1)))


def _filters_calls(machine: _Machine) -> bool:
    """Whether there is a filter that sees the numbers of this program: those of one that is translated become others before."""
    with contextlib.suppress(OSError):  # Linux before 6.1
        if _KERNEL.read_text().strip() != platform.machine():
            return False
    action = ctypes.c_uint32(_ERRNO)
    return int(_LIBC.syscall(machine.seccomp, _SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(action))) == 0


def _drop_capabilities(machine: _Machine) -> None:
    """Keeps what root is used as here: reading a model wherever it lies."""
    header = struct.pack("=II", _CAPABILITIES_V3, 0)
    kept = 1 << _CAP_DAC_READ_SEARCH
    _LIBC.syscall(machine.capset, header, struct.pack("=6I", kept, kept, 0, 0, 0, 0))


def _restrict_files(folder: Path, given: Sequence[Path] | None) -> None:
    version = _landlock_version()
    handled = _CHANGES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0) | (0 if given is None else _READS)
    attributes = struct.pack("=3Q", handled, 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _checked(_LIBC.syscall(_CREATE_RULESET, attributes, size, 0))
    try:
        _allow(ruleset, str(folder), handled)
        for device in _devices():
            _allow(ruleset, device, handled & (_OF_FILES | _READS))
        for path in () if given is None else (*_libraries(), "/dev", *map(str, given)):
            _allow(ruleset, path, _READ_FOLDER if path == "/dev" else _READS)
        _checked(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _libraries() -> Iterator[str]:
    """Where this interpreter and what it loads may come from. Who keeps an accelerator's elsewhere has it in LD_LIBRARY_PATH anyway."""
    yield from _SYSTEM
    yield from (sys.prefix, sys.base_prefix, *sys.path)
    yield from os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)


def _devices() -> Iterator[str]:
    """Accelerators cannot be told from other character devices. But no disks, which root may write to, and no memory of others."""
    with contextlib.suppress(OSError), os.scandir("/dev") as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # unplugged just now
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISCHR(mode) or (stat.S_ISDIR(mode) and entry.name in _ACCELERATORS):
                    yield entry.path


def _allow(ruleset: int, path: str, access: int) -> None:
    """Of a folder, with all below it. What is not there needs no rule; what gets none stays closed."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        access &= _OF_FILES
    _LIBC.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", access, descriptor), 0)
    os.close(descriptor)


def _filter_calls(machine: _Machine, pid: int) -> None:
    program = b"".join(struct.pack("=HBBI", *line) for line in _program(machine, pid))
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    for flags in (_SPEC_ALLOW, 0):  # Linux before 4.17 does not know the flag
        if _LIBC.syscall(machine.seccomp, _SECCOMP_SET_MODE_FILTER, flags, head) == 0:
            return


def _program(machine: _Machine, pid: int) -> Iterator[tuple[int, int, int, int]]:
    """(instruction, lines to skip if true, if false, operand)."""
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    yield from ((_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, machine.audit), refuse)  # the other ABI of the same processor
    yield from ((_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), refuse)
    for number in machine.refused:
        yield from ((_EQUAL, 0, 1, number), refuse)
    # What has a second best: glibc then takes clone, whose flags can be seen, and writes instead of reserving, which is counted.
    yield from ((_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS))
    yield from ((_EQUAL, 0, 1, machine.fallocate), (_RETURN, 0, 0, _ERRNO | errno.EOPNOTSUPP))
    yield from ((_EQUAL, 0, 4, machine.clone), (_LOAD, 0, 0, _ARGUMENT), (_ANY_BIT, 1, 0, _CLONE_THREAD), refuse)
    yield (_LOAD, 0, 0, _NUMBER)
    # It ends with the agent, whatever it would like.
    yield from ((_EQUAL, 0, 4, machine.prctl), (_LOAD, 0, 0, _ARGUMENT), (_EQUAL, 0, 1, _PR_SET_PDEATHSIG), refuse)
    yield (_LOAD, 0, 0, _NUMBER)
    for number, (one, other) in machine.commands:
        yield from ((_EQUAL, 0, 4, number), (_LOAD, 0, 0, _SECOND), (_EQUAL, 1, 0, one), (_EQUAL, 0, 1, other), refuse)
        yield (_LOAD, 0, 0, _NUMBER)
    for number in machine.own:
        yield from ((_EQUAL, 0, 4, number), (_LOAD, 0, 0, _ARGUMENT), (_EQUAL, 2, 0, pid), (_EQUAL, 1, 0, 0), refuse)
        yield (_LOAD, 0, 0, _NUMBER)
    yield (_RETURN, 0, 0, _ALLOW)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)
