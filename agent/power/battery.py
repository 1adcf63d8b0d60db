"""A battery that tells its current: phones, tablets, laptops.

Source: https://docs.kernel.org/power/power_supply_class.html and Documentation/ABI/testing/sysfs-class-power: microamperes, microvolts,
microwatts. The sign of `current_now` is not agreed on among drivers, so its size counts, and only while the battery is discharging:
on a charger it says what goes into the battery, not what the device takes.
"""

from __future__ import annotations

from pathlib import Path

from agent.power import Meter, NoPower, Rail, Sample
from agent.sensors.files import number, text
from edgefarm.energy.signal import Kind

_INCLUDES = "the whole device, with screen and radios"


class _Battery:
    name = "battery"
    poll_ns = 50_000_000
    external = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.rails = (Rail(folder.name, Kind.MOMENT, _INCLUDES),)

    def read(self, rail: str) -> Sample:
        """Watts. Raises OSError: it is charged just now, or the driver gives nothing."""
        if (status := text(self._folder / "status")) != "Discharging":
            raise OSError(f"{rail} is not discharging ({status}): unplug the charger")
        micro = number(self._folder / "power_now")
        if micro is not None:
            return Sample(abs(micro) / 1e6)
        amperes, volts = number(self._folder / "current_now"), number(self._folder / "voltage_now")
        if amperes is None or volts is None:
            raise OSError(f"{rail} tells neither power_now nor current_now and voltage_now")
        return Sample(abs(amperes) * volts / 1e12)


def find(root: Path, meter: Meter) -> _Battery:
    """The device's own battery. Raises NoPower."""
    supplies = sorted((root / "sys/class/power_supply").glob("*"))
    own = [p for p in supplies if text(p / "type") == "Battery" and text(p / "scope") != "Device"]  # not a mouse's
    if not own:
        raise NoPower("battery: none in /sys/class/power_supply")
    return _Battery(own[0])
