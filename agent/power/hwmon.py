"""TI's current monitors behind hwmon: INA3221 (Jetson Orin and newer L4T) and INA219, 220, 226, 230, 231, 238 …

Sources: https://docs.kernel.org/hwmon/ina3221.html and ina2xx.html; rails of Jetson boards: Jetson Linux Developer Guide, "Platform
Power and Performance", section "Software-Based Power Consumption Modeling" (VDD_IN is the module's input; AGX Orin has none: its
rails are added, without VDDQ_VDD2_1V8AO, which is fed from VIN_SYS_5V0). Accuracy: data sheets, gain error of the chip alone; the
shunt's tolerance comes on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agent.power import Meter, NoPower, Rail
from agent.power.sums import Summed
from agent.sensors.files import number, number_of, text
from edgefarm.energy.signal import Kind

_WHOLE = ("VDD_IN", "POM_5V_IN", "VIN")  # input of a module or board
_INSIDE = ("VDDQ_VDD2_1V8AO",)  # fed from another rail that is measured too
_UNUSED = ("NC", "")
_ACCURACY = {"ina3221": "0.25 % of the chip (typical), without the shunt", "ina226": "0.1 % of the chip, without the shunt",
             "ina219": "0.5 % of the chip, without the shunt"}  # fmt: skip
_CHANNELS = 3
_POLLS_PER_UPDATE = 3
_POLL_NS = (5_000_000, 10_000_000, 50_000_000)  # at the soonest; where the period is unknown; at the latest: each read takes the bus's time


def find(root: Path, meter: Meter) -> Summed:
    """All rails of all chips; the module's input first, or the sum of those that are not part of another. Raises NoPower."""
    chips = sorted((root / "sys/class/hwmon").glob("hwmon*"), key=lambda p: number_of(p.name))
    rails: list[Rail] = []
    reads: dict[str, Callable[[], float]] = {}
    for chip in chips:
        for rail, read in _chip(chip):
            if rail.name not in reads:
                rails.append(rail)
                reads[rail.name] = read
    if not rails:
        raise NoPower("hwmon: no INA current monitor in /sys/class/hwmon")
    whole = [r for r in rails if r.name in _WHOLE]
    ordered = [*whole, *(r for r in rails if r not in whole)]
    summed = [] if whole else [r.name for r in rails if r.name not in _INSIDE]
    return Summed("hwmon", ordered, reads, summed, "the sum of the rails that are measured", poll_ns=_poll_ns(rails))


def _poll_ns(rails: Sequence[Rail]) -> int:
    period_ns = min(r.period_ns for r in rails)
    return min(max(period_ns // _POLLS_PER_UPDATE, _POLL_NS[0]), _POLL_NS[2]) if period_ns else _POLL_NS[1]


def _chip(chip: Path) -> Iterator[tuple[Rail, Callable[[], float]]]:
    name = text(chip / "name") or ""
    if not name.startswith("ina"):
        return
    period_ns = round((number(chip / "update_interval") or 0) * 1e6)
    accuracy = _ACCURACY.get(name, "")
    if name == "ina3221":
        for channel in range(1, _CHANNELS + 1):
            label = text(chip / f"in{channel}_label") or ""
            if label.upper() not in _UNUSED and text(chip / f"in{channel}_enable") != "0":
                yield Rail(label, Kind.MEAN, _includes(label), accuracy, period_ns), _product(chip, channel)
    elif number(chip / "power1_input") is not None:
        label = text(chip / "label") or text(chip / "device/of_node/label") or f"{name}@{chip.resolve().parent.parent.name}"
        yield Rail(label, Kind.MEAN, f"what flows through the shunt of {label}", accuracy, period_ns), _microwatts(chip / "power1_input")


def _includes(label: str) -> str:
    return "everything that the module takes in" if label in _WHOLE else f"what {label} feeds"


def _product(chip: Path, channel: int) -> Callable[[], float]:
    volts, amperes = chip / f"in{channel}_input", chip / f"curr{channel}_input"
    return lambda: int(volts.read_bytes()) * int(amperes.read_bytes()) / 1e6  # mV x mA


def _microwatts(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_bytes()) / 1e6
