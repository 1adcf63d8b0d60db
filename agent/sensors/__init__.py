"""What a device tells of itself: one file per sensor, found through the table. A value that can't be read is absent with its reason.

To add one: a file beside this one with `read(root) -> list[Reading | Absent | Setting]`, a row in SENSORS, a parameter in
tests/contract/test_sensors.py. A sensor reads below `root` only (the real one is `/`), so that a copied tree tests it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Union


@dataclass(frozen=True)
class Reading:
    """One number, in the unit that ends the quantity's name. `…_total` only grows; `throttled` is 0 or 1 and its source the reason."""

    quantity: str
    source: str
    value: float


@dataclass(frozen=True)
class Setting:
    """One word, e.g. a governor."""

    quantity: str
    source: str
    value: str


@dataclass(frozen=True)
class Absent:
    """A quantity that this device does not give, and why."""

    quantity: str
    reason: str


Observation = Union[Reading, Setting, Absent]


class Sensor(Protocol):
    """A sensor is a module of this package with one function."""

    def read(self, root: Path) -> list[Observation]:
        """What can be read now, quickly (a few files). Never a number that was not read."""
        ...


SENSORS: dict[str, str] = {
    "cpu": "agent.sensors.cpu",
    "memory": "agent.sensors.memory",
    "disk": "agent.sensors.disk",
    "temperature": "agent.sensors.temperature",
    "frequency": "agent.sensors.frequency",
    "throttling": "agent.sensors.throttling",
    "firmware": "agent.sensors.firmware",
    "power": "agent.sensors.power",
    "rails": "agent.sensors.rails",
    "governor": "agent.sensors.governor",
}
ROOT = Path("/")


def load_sensor(name: str) -> Sensor:
    """The sensor `name`."""
    return importlib.import_module(SENSORS[name])


def collect_by_sensor(root: Path = ROOT, names: Iterable[str] = tuple(SENSORS)) -> Mapping[str, list[Observation]]:
    """What each sensor says; one that fails gives a single Absent under its own name."""
    return {name: _read(name, root) for name in names}


def collect(root: Path = ROOT, names: Iterable[str] = tuple(SENSORS)) -> list[Observation]:
    """What all sensors say."""
    return [observation for observations in collect_by_sensor(root, names).values() for observation in observations]


def _read(name: str, root: Path) -> list[Observation]:
    try:
        return load_sensor(name).read(root)
    except (OSError, ValueError, IndexError, KeyError) as error:
        return [Absent(name, f"{type(error).__name__}: {error}")]
