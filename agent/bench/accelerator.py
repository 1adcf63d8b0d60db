"""Memory that a process holds on an accelerator, which its resident size does not show.

NVIDIA's cards: NVML, per process (https://docs.nvidia.com/deploy/nvml-api/, nvmlDeviceGetComputeRunningProcesses). Boards whose accelerator
has no memory of its own (Jetson) take it from the system's, past the process's resident size: NVIDIA's allocator there tells root, in
debugfs (nvmap_dev.c of L4T: columns CLIENT PROCESS PID SIZE, the size in KiB with a K).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ON_CPU = frozenset({"", "CPUExecutionProvider", "CPU", "xnnpack", "none"})
_NVIDIA = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider", "NVIDIA"})
_COMPATIBLE = "proc/device-tree/compatible"
_NVMAP = "sys/kernel/debug/nvmap/iovmm/clients"


@dataclass(frozen=True)
class Held:
    """Bytes on the accelerator `name`; None where there is none (no name) or it does not tell (`reason`)."""

    name: str = ""
    bytes: int | None = None
    reason: str = ""


def held_by(pid: int, provider: str, root: Path = Path("/")) -> Held:
    """What process `pid` holds now, whose model asked for `provider`.

    Args:
        pid: as this process sees it.
        provider: execution provider, delegate or device, as `Runtime.requested` names it.
        root: `/`, or a copied tree.
    """
    if provider in _ON_CPU:
        return Held()
    if provider not in _NVIDIA:
        return Held(provider, None, f"no counter of memory per process is known for {provider}")
    compatible = root / _COMPATIBLE
    if compatible.is_file() and b"nvidia,tegra" in compatible.read_bytes():
        return _from_nvmap(pid, root / _NVMAP)
    return _from_nvml(pid)


def _from_nvmap(pid: int, clients: Path) -> Held:
    name = "Tegra, memory shared with the system"
    try:
        rows = [line.split() for line in clients.read_text().splitlines()]
    except OSError as error:
        return Held(name, None, f"/{_NVMAP}: {error.strerror}: the agent must be root to read it")
    sizes = [row[3] for row in rows if len(row) == 4 and row[2] == str(pid)]
    if not sizes:
        return Held(name, None, f"/{_NVMAP} lists no process {pid}")
    if not all(size.endswith("K") and size[:-1].isdigit() for size in sizes):
        return Held(name, None, f"/{_NVMAP}: sizes are not in K")
    return Held(name, sum(int(size[:-1]) for size in sizes) * 1024)


def _from_nvml(pid: int) -> Held:
    name = "NVIDIA"
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return Held(name, None, "memory of NVIDIA's cards needs: pip install 'edgefarm[nvml]'")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Held(name, None, f"NVML: {error}")
    try:
        cards = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        found = [(card, p) for card in cards for p in nvml.nvmlDeviceGetComputeRunningProcesses(card) if p.pid == pid]
        name = ", ".join(dict.fromkeys(str(nvml.nvmlDeviceGetName(card)) for card, _ in found)) or name
    except nvml.NVMLError as error:
        return Held(name, None, f"NVML: {error}")
    finally:
        nvml.nvmlShutdown()
    if not found:  # another PID namespace, or a model that never reached the card
        return Held(name, None, f"NVML lists no process {pid}")
    if any(process.usedGpuMemory is None for _, process in found):
        return Held(name, None, "NVML does not tell the memory of a process here")
    return Held(name, sum(int(process.usedGpuMemory) for _, process in found))
