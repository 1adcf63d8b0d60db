"""Who chooses the CPU frequency, and the platform's power mode."""

from __future__ import annotations

from pathlib import Path

from agent.sensors import Absent, Observation, Setting
from agent.sensors.files import text


def read(root: Path) -> list[Observation]:
    """`governor` (all in use, joined by `+`), `frequency_driver`, `power_profile`, `boost` (on or off)."""
    policies = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    found: list[Observation] = []
    for quantity, file in (("governor", "scaling_governor"), ("frequency_driver", "scaling_driver")):
        values = sorted({v for p in policies if (v := text(p / file))})
        found.append(Setting(quantity, "", "+".join(values)) if values else Absent(quantity, "no cpufreq in /sys/devices/system/cpu"))
    profile = text(root / "sys/firmware/acpi/platform_profile")
    found.append(Setting("power_profile", "", profile) if profile else Absent("power_profile", "no ACPI platform profile"))
    boost = text(root / "sys/devices/system/cpu/cpufreq/boost")
    if boost not in ("0", "1"):
        return [*found, Absent("boost", "the frequency driver has no boost switch")]
    return [*found, Setting("boost", "", "on" if boost == "1" else "off")]
