"""INA3221 behind NVIDIA's own driver of older L4T (JetPack 4: Jetson Nano, TX2, Xavier), an industrial I/O device.

Source: Jetson Linux Developer Guide 32, "Power Management", section "Power Monitor": `rail_name_N`, `in_powerN_input` in milliwatts
below /sys/bus/i2c/drivers/ina3221x; POM_5V_IN (Nano) and VDD_IN (TX2, Xavier NX) are inputs, AGX Xavier has none: its rails are added.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent.power import Meter, NoPower, Rail
from agent.power.sums import Summed
from agent.sensors.files import number, text
from edgefarm.energy.signal import Kind

_WHOLE = ("POM_5V_IN", "VDD_IN")
_DEVICES = "sys/bus/i2c/drivers/ina3221x/*/iio[_:]device*"  # iio:device0; some releases spell it iio_device
_CHANNELS = 3
_POLL_NS = 10_000_000


def find(root: Path, meter: Meter) -> Summed:
    """All rails; the board's input first, or the sum of all. Raises NoPower."""
    rails: list[Rail] = []
    reads: dict[str, Callable[[], float]] = {}
    for device in sorted(root.glob(_DEVICES)):
        for channel in range(_CHANNELS):
            name, path = text(device / f"rail_name_{channel}"), device / f"in_power{channel}_input"
            if name and name.upper() != "NC" and name not in reads and number(path) is not None:
                holds = "everything that the module takes in" if name in _WHOLE else f"what {name} feeds"
                rails.append(Rail(name, Kind.MEAN, holds, "0.25 % of the chip (typical), without the shunt"))
                reads[name] = _milliwatts(path)
    if not rails:
        raise NoPower("iio: no INA3221 in /sys/bus/i2c/drivers/ina3221x")
    whole = [r for r in rails if r.name in _WHOLE]
    ordered = [*whole, *(r for r in rails if r not in whole)]
    summed = [] if whole else [r.name for r in rails]
    return Summed("iio", ordered, reads, summed, "the sum of the rails that are measured", poll_ns=_POLL_NS)


def _milliwatts(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_bytes()) / 1e3
