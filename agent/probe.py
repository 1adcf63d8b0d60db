"""What this device is and what it can do. A capability is proved: a tiny model was loaded and run, in a runner process."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import platform
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from agent import power
from agent.runner.process import Cancelled, RunnerFailed, RunnerProcess
from agent.runtimes import RUNTIMES, Library, installed_library, missing
from agent.sensors.files import text
from edgefarm import __version__, hostlock
from edgefarm.digest import atomic_write
from edgefarm.model import Capability, Limits, Stage

_LOG = logging.getLogger(__name__)
_LIMITS = Limits(load_ns=60 * 10**9, run_ns=60 * 10**9)
_CACHE = "probe.json"
_ROOT = Path("/")
# Instructions that decide which kernels a runtime takes; other flags would only split classes of equal devices.
_SIMD = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_int8", "amx_bf16", "neon", "asimd", "asimddp", "asimdhp", "fphp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip
# Arm's identity registers name no vendor for QEMU's own processor; BogoMIPS is twice its timer's 62.5 MHz, which is no real server's.
_QEMU_MAX, _QEMU_BOGOMIPS = ("0x00", "0x051"), "125.00"


def probe_capabilities(
    allowed: Collection[str] | None = None,
    state: Path | None = None,
    *,
    lock: Path | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    unit_socket: Path | None = None,
    scratch: Path | None = None,
) -> tuple[Capability, ...]:
    """Every runtime of the table: what runs, and the reason for what does not. Raises Cancelled.

    Args:
        allowed: names of runtimes that may be used; None = all.
        state: folder of the cache; the proofs are kept there until the next boot or a change of versions.
        lock: file of the host's measure lock (None = the usual one): nothing is proved while a device of this host measures.
        cancelled: looked at every 50 ms.
        unit_socket: where systemd starts runners in units of their own; None: they are children of this process.
        scratch: where the runners' folder is made, and who has it removes what a killed process leaves; None: the temporary directory.
    """
    if (known := cached_capabilities(allowed, state)) is not None:
        return known
    with (
        hostlock.hold(exclusive=False, path=lock, cancelled=cancelled) as held,
        tempfile.TemporaryDirectory(prefix="edgefarm-probe-", dir=scratch, ignore_cleanup_errors=True) as folder,
    ):
        if not held:
            raise Cancelled
        prover = _Prover(Path(folder), cancelled, unit_socket)
        found = tuple(c for name in RUNTIMES for c in prover.runtime(name, allowed))
    if state is not None:
        content = {"key": _cache_key(allowed), "capabilities": [asdict(c) for c in found]}
        try:
            atomic_write(state / _CACHE, json.dumps(content, indent=1).encode())
        except OSError as error:
            _LOG.warning("%s: %s: proved again at the next start", state / _CACHE, error.strerror)
    return found


def cached_capabilities(allowed: Collection[str] | None, state: Path | None) -> tuple[Capability, ...] | None:
    """What was proved since the last boot with the same versions, or None."""
    try:
        content = json.loads((state / _CACHE).read_bytes()) if state else {}
        if content.get("key") == _cache_key(allowed):
            return tuple(Capability(**{**c, "formats": tuple(c["formats"])}) for c in content["capabilities"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # absent, or damaged: it is proved again
    return None


def fingerprint(threads: int, root: Path = _ROOT, allowed: Collection[str] | None = None) -> dict[str, str]:
    """What makes devices alike: hardware and runtime versions, no serials, no kernel build. Devices with equal ones share trials.

    Args:
        threads: the device's limit.
        root: `/`, or a copied tree.
        allowed: names of runtimes that may be used; None = all. A device that lacks one can't take the other's trials.
    """
    # Of a translated program's two processors /proc/cpuinfo may describe the one that it does not see; that one's key is another.
    flags = set(_cpu(root).get("Features" if _family(platform.machine()) == "arm" else "flags", "").split())
    found = {
        "cpu": cpu_name(root),
        "architecture": platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "simd": " ".join(f for f in _SIMD if f in flags),
        "memory_gib": f"{_memory_gib(root):g}",
        "os": _os_name(root),
        "threads": str(threads),
    }
    emulated = {"emulated": how} if (how := emulation(root)) else {}
    return {**found, **emulated, **runtime_versions(allowed)}


def labels(root: Path = _ROOT, allowed: Collection[str] | None = None, meter: power.Meter | None = None) -> dict[str, str]:
    """Labels that the device gives itself; the user's own come on top. What can't be read is left out.

    `arch`, `os`, `board`, `soc`, `ram_gib`, `runtimes`: those that are installed and allowed, e.g. `onnxruntime,tflite`; `power`: the
    sources that answer (`agent.power`), the best first; and `emulated: yes` where the processor is.
    """
    memory_gib = _memory_gib(root)
    found = {
        "arch": platform.machine(), "os": _label(_os_name(root)), "board": _label(_board(root)), "soc": _label(_soc(root)),
        "ram_gib": f"{memory_gib:g}" if memory_gib else "", "runtimes": ",".join(sorted(runtime_versions(allowed))),
        "power": ",".join(power.look(root, meter, ask_meter=False)[0]), "emulated": "yes" if emulation(root) else "",
    }  # fmt: skip
    return {key: value for key, value in found.items() if value}


def emulation(root: Path = _ROOT, machine: str = "") -> str:
    """How this machine's processor is emulated, if that is certain; else ''. What is emulated says nothing about speed.

    A virtual machine's name alone does not tell: under a hypervisor QEMU shows the same one, and the processor is real.

    Args:
        root: `/`, or a copied tree.
        machine: what programs are told to run on; default: this process's.
    """
    cpu, told = _cpu(root), _family(machine or platform.machine())
    real = _family(text(root / "proc/sys/kernel/arch") or "") or ("x86" if "vendor_id" in cpu else "arm" if "CPU part" in cpu else "")
    if told and real and told != real:
        return f"programs for {told} are translated on a processor of {real}"
    if translator := _translator(root):
        return f"programs are translated by {translator}"
    virtual = _board(root) == "linux,dummy-virt" or "QEMU" in (text(root / "sys/class/dmi/id/sys_vendor") or "")
    ident = cpu.get("CPU implementer", ""), cpu.get("CPU part", "")
    if told == "arm" and (ident == _QEMU_MAX or (virtual and cpu.get("BogoMIPS") == _QEMU_BOGOMIPS)):
        return "a virtual machine without hardware support (QEMU TCG)"
    name, clocks = cpu.get("model name", ""), text(root / "sys/devices/system/clocksource/clocksource0/available_clocksource")
    if name.startswith("QEMU TCG") or (name.startswith("QEMU") and clocks is not None and "kvm-clock" not in clocks.split()):
        return f"a virtual machine without hardware support ({name})"
    return ""


def power_sources(meter: power.Meter | None = None, root: Path = _ROOT) -> dict[str, dict[str, Any]]:
    """Each source of power, the best first: its `rails` (name -> what it includes), or the `reason` why it does not answer."""
    found, reasons = power.look(root, meter)
    answers = {name: {"rails": {r.name: r.includes for r in source.rails}, "reason": ""} for name, source in found.items()}
    return {**answers, **{name: {"rails": {}, "reason": reason} for name, reason in reasons.items()}}


def host_id(root: Path = _ROOT) -> str:
    """The kernel's boot id: agents with an equal one share a host and take turns to measure."""
    return text(root / "proc/sys/kernel/random/boot_id") or platform.node()


def runtime_versions(allowed: Collection[str] | None = None) -> dict[str, str]:
    """Installed versions of the table's libraries, by runtime, of those that are allowed (None = all); nothing is imported for it."""
    return {name: version for name in RUNTIMES if (allowed is None or name in allowed) and (version := _version(name))}


def cpu_name(root: Path = _ROOT) -> str:
    """The processor's (or the board's) name."""
    cpu = _cpu(root)
    part = f"arm {cpu['CPU implementer']}/{cpu['CPU part']}" if "CPU part" in cpu and "CPU implementer" in cpu else ""
    name = cpu.get("model name") or _board(root) or part or cpu.get("uarch") or platform.machine()
    return " ".join(name.split())


class _Prover:
    def __init__(self, folder: Path, cancelled: Callable[[], bool], unit_socket: Path | None) -> None:
        self._folder, self._cancelled, self._unit_socket = folder, cancelled, unit_socket

    def runtime(self, name: str, allowed: Collection[str] | None) -> Iterator[Capability]:
        """The capabilities of one row of the table."""
        entry = RUNTIMES[name]
        without = Capability(name, "", _version(name), False, formats=entry.formats)
        if allowed is not None and name not in allowed:
            yield replace(without, reason="not allowed by the agent's configuration")
        elif installed_library(name) is None:
            yield replace(without, reason=missing(name))
        else:
            try:
                offered = self._ask({"do": "probe", "runtime": name})
            except RunnerFailed as error:
                yield replace(without, reason=_line(error))
                return
            for provider, options in offered["providers"].items():
                capability = replace(without, provider=provider, version=offered["version"], options=options)
                yield self._prove(capability)

    def _prove(self, capability: Capability) -> Capability:
        try:
            self._ask({"do": "prove", "runtime": capability.runtime, "options": capability.options})
        except RunnerFailed as error:
            return replace(capability, reason=_line(error))
        return replace(capability, available=True)

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A runner of its own for every question: a provider that crashes takes nothing with it."""
        with RunnerProcess(_LIMITS, self._folder, cancelled=self._cancelled, unit_socket=self._unit_socket) as runner:
            return runner.call(request, _LIMITS.load_ns, Stage.LOAD).body


def _line(error: RunnerFailed) -> str:
    lines = [line for line in error.failure.detail.splitlines() if line.strip()]
    line = lines[-1] if lines and lines[0].startswith("Traceback") else lines[0] if lines else error.failure.kind.value
    return line.removesuffix("; it said:")[:300]  # the words that would follow are not in it


def _cache_key(allowed: Collection[str] | None) -> list[Any]:
    permitted = sorted(RUNTIMES if allowed is None else allowed)
    return [host_id(), __version__, platform.python_version(), permitted, sorted(RUNTIMES), runtime_versions()]


def _version(name: str) -> str:
    library = installed_library(name)
    return _recorded_version(library) if library is not None else ""


def _recorded_version(library: Library) -> str:
    """From the name of the folder `NAME-VERSION.dist-info` beside the library (binary distribution format); empty if there is none.

    `importlib.metadata` says the same, and other forms too, but its imports cost an idle agent a MiB: only where they are needed.
    """
    spec = importlib.util.find_spec(library.module)
    beside = Path(spec.origin).parents[1] if spec is not None and spec.origin else None
    for record in beside.glob("*.dist-info") if beside is not None else ():
        name, _, version = record.name.removesuffix(".dist-info").partition("-")
        if _plain(name) == _plain(library.distribution):
            return version
    import importlib.metadata as installed

    try:
        return installed.version(library.distribution)
    except installed.PackageNotFoundError:
        return ""


def _plain(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _cpu(root: Path) -> dict[str, str]:
    """The first processor of /proc/cpuinfo."""
    block = (text(root / "proc/cpuinfo") or "").split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}


def _family(machine: str) -> str:
    """Processors that run each other's programs natively, more or less; '' if unknown."""
    if machine.startswith(("arm", "aarch64")):
        return "arm"
    return "x86" if re.fullmatch(r"x86_64|amd64|i[3-6]86", machine) else ""


def _translator(root: Path) -> str:
    """The program that runs this one in the processor's place, e.g. `qemu-aarch64-static`; '' if there is none.

    QEMU's user emulation answers itself what a program asks of /proc/self/exe, and knows the question by the text of the path
    (linux-user/syscall.c, is_proc_myself): with one slash more it is the kernel that answers, with what it really runs.
    """
    place = str(root).rstrip("/")
    try:
        told, real = (os.readlink(f"{place}/proc{slashes}self/exe") for slashes in ("/", "//"))
    except OSError:
        return ""
    return "" if told == real else os.path.basename(real)


def _board(root: Path) -> str:
    """The device tree's name of the board, e.g. `Raspberry Pi 4 Model B Rev 1.5`, without the revision."""
    model = text(root / "proc/device-tree/model") or text(root / "sys/firmware/devicetree/base/model") or ""
    return re.sub(r"\s+Rev(ision)?\s+\S+$", "", model)


def _soc(root: Path) -> str:
    """The chip, e.g. `bcm2711`: the last, most general, of what the device tree is compatible with, without its vendor.

    https://devicetree-specification.readthedocs.io, section 2.3.1: from the most specific to the most general.
    """
    compatible = text(root / "proc/device-tree/compatible") or text(root / "sys/firmware/devicetree/base/compatible") or ""
    return compatible.rpartition("\0")[2].rpartition(",")[2]


def _memory_gib(root: Path) -> float:
    """The next of 1, 1.5, 2, 3, 4, 6, 8 … so that what firmware keeps for itself does not split a class."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", text(root / "proc/meminfo") or "", re.MULTILINE)
    total, size = int(match[1]) / 2**20 if match else 0.0, 2.0**-6
    while size < total:
        size *= 1.5 if math.log2(size).is_integer() else 4 / 3
    return size if match else 0.0


def _os_name(root: Path) -> str:
    rows = dict(line.split("=", 1) for line in (text(root / "etc/os-release") or "").splitlines() if "=" in line)
    return " ".join(rows.get(key, "").strip('"') for key in ("ID", "VERSION_ID")).strip() or platform.system().lower()


def _label(value: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", value.lower()).strip("-")
