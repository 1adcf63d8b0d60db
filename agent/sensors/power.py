"""Where the power comes from (https://docs.kernel.org/power/power_supply_class.html)."""

from __future__ import annotations

from pathlib import Path

from agent.sensors import Absent, Observation, Reading, Setting
from agent.sensors.files import number, text


def read(root: Path) -> list[Observation]:
    """`power_source` (`mains` or `battery`) and `battery_charge_ratio` by battery."""
    supplies = sorted(p for p in (root / "sys/class/power_supply").glob("*") if text(p / "scope") != "Device")  # not a mouse's
    kinds = {p: text(p / "type") for p in supplies}
    batteries = [p for p, kind in kinds.items() if kind == "Battery"]
    lines = [p for p, kind in kinds.items() if kind not in ("Battery", None)]
    found: list[Observation] = []
    if any(number(p / "online") for p in lines) or any(text(p / "status") in ("Charging", "Full", "Not charging") for p in batteries):
        found.append(Setting("power_source", "", "mains"))
    elif any(text(p / "status") == "Discharging" for p in batteries):
        found.append(Setting("power_source", "", "battery"))
    else:
        found.append(Absent("power_source", "no power supply in /sys/class/power_supply says where power comes from"))
    for battery in batteries:
        capacity = number(battery / "capacity")
        if capacity is not None:
            found.append(Reading("battery_charge_ratio", battery.name, capacity / 100))
    return found
