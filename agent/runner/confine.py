"""Takes from a runner what no model needs: other processes, sockets, files outside of its folder, root's powers. Standard library only.

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
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_GET_ACTION_AVAIL = 1, 2
_SPEC_ALLOW = 1 << 2  # else older kernels slow all of the process's code down, against attacks that are not the matter here
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF instructions
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; the low half of the first argument
_X32 = 0x40000000
_CLONE_THREAD = 0x10000
_CAPABILITIES_V3, _CAP_DAC_READ_SEARCH = 0x20080522, 2

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every architecture
_WRITE_FILE, _TRUNCATE, _REFER = 1 << 1, 1 << 14, 1 << 13
_CHANGES = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))  # write, remove, and make entries of any kind
_SCOPES = 0b11  # abstract Unix sockets and signals stay within the runner


@dataclass(frozen=True)
class _Machine:
    """System call numbers of one architecture (asm/unistd.h). `own` may only name the caller or 0 in their first argument."""

    audit: int
    seccomp: int
    capset: int
    clone: int
    fallocate: int
    own: tuple[int, ...]  # kill, tgkill, prlimit64
    refused: tuple[int, ...]


_CLONE3 = 435
_REFUSED_ANYWHERE = (424, 425, 438)  # pidfd_send_signal, io_uring_setup (it does what is refused here), pidfd_getfd
# socket, execve, execveat, tkill, rt_sigqueueinfo, rt_tgsigqueueinfo, ptrace, process_vm_readv, process_vm_writev, unshare, setns, bpf,
# userfaultfd, perf_event_open; on x86-64 fork and vfork
_MACHINES = {
    "x86_64": _Machine(
        0xC000003E, 317, 126, 56, 285, (62, 234, 302),
        (41, 59, 322, 200, 129, 297, 101, 310, 311, 272, 308, 321, 323, 298, 57, 58, *_REFUSED_ANYWHERE),
    ),
    "aarch64": _Machine(
        0xC00000B7, 277, 91, 220, 47, (129, 131, 261),
        (198, 221, 281, 130, 138, 240, 117, 270, 271, 97, 268, 280, 282, 241, *_REFUSED_ANYWHERE),
    ),
}  # fmt: skip
_LIBC = ctypes.CDLL(None, use_errno=True)


def apply(folder: Path) -> None:
    """Confines this process and the threads that it will start, for good; files may be written below `folder` and in /dev only.

    Call while it has one thread. Neither `fork` nor another program works afterwards.
    """
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return  # Linux before 3.5
    machine = _machine()
    if machine is not None and os.geteuid() == 0:
        _drop_capabilities(machine)
    if _landlock_version() > 0:
        with contextlib.suppress(OSError):
            _restrict_files(folder)
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
        "file_writes": f"Landlock {landlock}: its own folder and /dev" if landlock else "not enforced: no Landlock in this kernel",
        "privileges": "no new ones" + ("; of root's only reading any file is left" if machine and os.geteuid() == 0 else ""),
    }


def _machine() -> _Machine | None:
    """None where numbers are not known: another processor, or a 32-bit process on this one."""
    return _MACHINES.get(platform.machine()) if sys.maxsize > 2**32 else None


def _landlock_version() -> int:
    """0 where the kernel has none, or refuses it."""
    return max(0, int(_LIBC.syscall(_CREATE_RULESET, None, 0, 1)))


def _filters_calls(machine: _Machine) -> bool:
    action = ctypes.c_uint32(_ERRNO)
    return int(_LIBC.syscall(machine.seccomp, _SECCOMP_GET_ACTION_AVAIL, 0, ctypes.byref(action))) == 0


def _drop_capabilities(machine: _Machine) -> None:
    """Keeps what root is used as here: reading a model wherever it lies."""
    header = struct.pack("=II", _CAPABILITIES_V3, 0)
    kept = 1 << _CAP_DAC_READ_SEARCH
    _LIBC.syscall(machine.capset, header, struct.pack("=6I", kept, kept, 0, 0, 0, 0))


def _restrict_files(folder: Path) -> None:
    version = _landlock_version()
    changes = _CHANGES | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    attributes = struct.pack("=3Q", changes, 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _checked(_LIBC.syscall(_CREATE_RULESET, attributes, size, 0))
    try:
        _allow_beneath(ruleset, folder, changes)
        _allow_beneath(ruleset, Path("/dev"), changes & (_WRITE_FILE | _TRUNCATE))
        _checked(_LIBC.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _allow_beneath(ruleset: int, folder: Path, access: int) -> None:
    descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        _checked(_LIBC.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", access, descriptor), 0))
    finally:
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
    for number in machine.own:
        yield from ((_EQUAL, 0, 4, number), (_LOAD, 0, 0, _ARGUMENT), (_EQUAL, 2, 0, pid), (_EQUAL, 1, 0, 0), refuse)
        yield (_LOAD, 0, 0, _NUMBER)
    yield (_RETURN, 0, 0, _ALLOW)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)
