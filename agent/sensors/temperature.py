"""Temperatures: thermal zones (https://docs.kernel.org/driver-api/thermal/sysfs-api.html), else hwmon."""

from __future__ import annotations

from pathlib import Path

from agent.sensors import Absent, Observation, Reading
from agent.sensors.files import matching, number, number_of, text

_POSSIBLE = (-50.0, 200.0)  # an unplugged or unpowered sensor reads as far below or above


def read(root: Path) -> list[Observation]:
    """`temperature_celsius` by zone, e.g. `cpu-thermal` or `coretemp/Core 0`; zones of one name get their number appended."""
    zones = matching(root, "sys/class/thermal", "thermal_zone*")
    named = [(text(zone / "type") or zone.name, number_of(zone.name), zone / "temp") for zone in zones]
    values = matching(root, "sys/class/hwmon", "hwmon*/temp*_input")
    for value in sorted(values, key=lambda p: (number_of(p.parent.name), number_of(p.name.removesuffix("_input")))):
        chip, label = value.parent, text(value.with_name(value.name.replace("_input", "_label"))) or value.name.removesuffix("_input")
        named.append((f"{text(chip / 'name') or chip.name}/{label}", number_of(chip.name), value))
    if not named:
        return [Absent("temperature_celsius", "no thermal zone and no hwmon temperature in /sys")]
    names = [name for name, _, _ in named]
    found: list[Observation] = []
    for name, index, path in named:
        milli = number(path)
        if milli is not None and _POSSIBLE[0] < milli / 1000 < _POSSIBLE[1]:
            found.append(Reading("temperature_celsius", name if names.count(name) == 1 else f"{name}#{index}", milli / 1000))
    return found or [Absent("temperature_celsius", f"{len(named)} sensors, none of which could be read")]
