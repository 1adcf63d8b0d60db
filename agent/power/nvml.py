"""NVIDIA's discrete graphics cards, through NVML (the extra `nvml`: nvidia-ml-py). Jetsons have none: see hwmon and iio.

Source: NVML API Reference, nvmlDeviceGetTotalEnergyConsumption (millijoules since the driver was loaded; Volta and newer) and
nvmlDeviceGetPowerUsage (milliwatts, within +-5 W on Fermi and Kepler, +-5 % since; averaged over a second on Ampere and newer).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from agent.power import Meter, NoPower, Rail, Sample
from edgefarm.energy.signal import Kind

_ACCURACY = "5 %"
_INCLUDES = "the whole card: processor, memory, converters, fan; not the computer around it"


class _Cards:
    name = "nvml"
    poll_ns = 20_000_000
    external = False

    def __init__(self, library: Any) -> None:
        self._library = library
        self._handles: dict[str, Any] = {}
        rails = []
        for index in range(library.nvmlDeviceGetCount()):
            handle, name = library.nvmlDeviceGetHandleByIndex(index), f"gpu{index}"
            try:
                library.nvmlDeviceGetTotalEnergyConsumption(handle)
                kind = Kind.COUNTER
            except library.NVMLError:
                kind = Kind.MEAN
            rails.append(Rail(name, kind, _INCLUDES, _ACCURACY))
            self._handles[name] = handle
        self.rails = tuple(rails)
        self._kinds = {r.name: r.kind for r in rails}

    def read(self, rail: str) -> Sample:
        """Joules or watts. Raises OSError."""
        library, handle = self._library, self._handles[rail]
        try:
            if self._kinds[rail] is Kind.COUNTER:
                return Sample(library.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)
            return Sample(library.nvmlDeviceGetPowerUsage(handle) / 1e3)
        except library.NVMLError as error:
            raise OSError(f"{rail}: {error}") from error


def find(root: Path, meter: Meter) -> _Cards:
    """All cards that the driver knows. Raises NoPower."""
    if not (root / "dev/nvidiactl").exists():
        raise NoPower("nvml: no NVIDIA driver (/dev/nvidiactl)")
    try:
        library = importlib.import_module("pynvml")
    except ImportError as error:
        raise NoPower("nvml: needs: pip install 'edgefarm[nvml]'") from error
    try:
        library.nvmlInit()
        cards = _Cards(library)
    except library.NVMLError as error:
        raise NoPower(f"nvml: {error}") from error
    if not cards.rails:
        raise NoPower("nvml: the driver knows no card")
    return cards
