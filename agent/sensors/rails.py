"""What the device takes: power and energy by rail, of its own sensors that are quick to read (`agent.power`)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from agent.power import CHEAP, NoPower, Source, find
from agent.sensors import Absent, Observation, Reading
from edgefarm.energy.signal import Kind

_QUANTITIES = {Kind.COUNTER: "energy_joules_total", Kind.MEAN: "power_watts", Kind.MOMENT: "power_watts"}


def read(root: Path) -> list[Observation]:
    """`power_watts` and, where the hardware counts, `energy_joules_total`, by rail: `hwmon/VDD_IN`."""
    found: list[Observation] = []
    for source in _sources(root):
        for rail in (r for r in source.rails if not r.sum_of):  # who looks can add; reading costs the bus's time
            try:
                found.append(Reading(_QUANTITIES[rail.kind], f"{source.name}/{rail.name}", source.read(rail.name).value))
            except (OSError, ValueError):  # a rail that is switched off, a battery that is charged
                continue
    return found or [Absent("power_watts", "no power sensor of the device's own, or none that this user may read")]


@lru_cache(maxsize=4)
def _sources(root: Path) -> tuple[Source, ...]:
    """Looked for once: sensors are soldered on."""
    found = []
    for name in CHEAP:
        try:
            found.append(find(name, root, ask=False))
        except NoPower:
            continue
    return tuple(found)
