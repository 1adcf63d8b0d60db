"""On-device power monitor of Pixel phones: energy counters of the rails of their power controllers (Android's power.stats HAL reads them).

Source: drivers/iio/power/odpm.c of the Pixel kernels: `energy_value` is `t=MILLISECONDS` and lines `CH3(T=ms)[S2M_VDD_CPUCL2], uWs`;
`enabled_rails` has `CH3[S2M_VDD_CPUCL2]:CPU`. The driver refreshes at most every 20 ms at 1 kHz sampling, every 2.6 s at its slowest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from agent.power import Meter, NoPower, Rail, Sample
from agent.sensors.files import number_of, text
from edgefarm.energy.signal import Kind

_VALUE = re.compile(r"CH\d+(?:\(T=\d+\))?\[(\w+)\], (\d+)")
_STAMP = re.compile(r"t=(\d+)")
_RAIL = re.compile(r"CH\d+\[(\w+)\]:(.+)")
_COMPUTING = ("cpu", "gpu", "tpu", "memory", "dram", "soc", "infrastructure", "tensor")  # what a model runs on; not radios, not the screen


class _Monitor:
    name = "odpm"
    poll_ns = 50_000_000
    external = False

    def __init__(self, devices: Sequence[Path]) -> None:
        self._places: dict[str, Path] = {}
        rails: list[Rail] = []
        computing: list[str] = []
        for device in devices:
            for name, subsystem in _RAIL.findall(text(device / "enabled_rails") or ""):
                self._places[name] = device
                rails.append(Rail(name, Kind.COUNTER, f"what {name} feeds ({subsystem.strip()})"))
                if any(word in subsystem.lower() for word in _COMPUTING):
                    computing.append(name)
        self._summed = tuple(computing)
        holds = f"the sum of {', '.join(computing)}: not screen, radios, nor the rails that are not enabled"
        whole = Rail("compute", Kind.COUNTER, holds, sum_of=tuple(computing))
        self.rails = (whole, *rails) if computing else tuple(rails)

    def read(self, rail: str) -> Sample:
        """Joules. Raises OSError or ValueError."""
        names = self._summed if rail == "compute" else (rail,)
        joules, stamp = 0.0, 0.0
        for device in dict.fromkeys(self._places[name] for name in names):
            content = (device / "energy_value").read_text()
            values = dict(_VALUE.findall(content))
            if absent := [n for n in names if self._places[n] == device and n not in values]:
                raise ValueError(f"{device.name}/energy_value lacks {', '.join(absent)}")
            joules += sum(int(values[n]) for n in names if self._places[n] == device) / 1e6
            seen = _STAMP.search(content)
            stamp += int(seen[1]) if seen else 0
        return Sample(joules, stamp or None)


def find(root: Path, meter: Meter) -> _Monitor:
    """All enabled rails. Raises NoPower."""
    devices = sorted((root / "sys/bus/iio/devices").glob("iio:device*"), key=lambda p: number_of(p.name))
    monitors = [d for d in devices if (d / "energy_value").exists()]
    if not monitors:
        raise NoPower("odpm: no power monitor in /sys/bus/iio/devices")
    monitor = _Monitor(monitors)
    if not monitor.rails:
        raise NoPower("odpm: the power monitor has no rail enabled, or this user may not read it")
    return monitor
