"""Raspberry Pi 5 and Compute Module 5: the converter of its power controller, as `vcgencmd pmic_read_adc` tells it.

Source: https://www.raspberrypi.com/documentation/computers/os.html#vcgencmd. Each rail has a line with amperes and one with volts
(`VDD_CORE_A current(7)=0.75A`, `VDD_CORE_V volt(15)=0.72V`); power is the sum of the products. EXT5V is volts only: what USB ports,
HATs, fans and the controller's own losses take is not in it.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from agent.power import Meter, NoPower, Rail, Sample
from edgefarm.energy.signal import Kind

_LINE = re.compile(r"(\w+)_([AV])\s+(?:current|volt)\(\d+\)=([\d.]+)[AV]")
_PROGRAMS = ("usr/bin/vcgencmd", "opt/vc/bin/vcgencmd", "bin/vcgencmd")
_TIMEOUT_S = 2.0
_ALL = "PMIC"


class _Controller:
    name = "raspberry-pi"
    poll_ns = 100_000_000  # each asks the firmware, through a process
    external = False

    def __init__(self, program: Path) -> None:
        self._program = program
        whole = "SoC, memory, HDMI and the board's own converters; not USB ports, HATs, the fan, nor the power controller's losses"
        rails = [Rail(name, Kind.MOMENT, f"what {name} feeds") for name in sorted(self._watts())]
        self.rails = (Rail(_ALL, Kind.MOMENT, whole), *rails)

    def read(self, rail: str) -> Sample:
        """Watts. Raises OSError or ValueError."""
        watts = self._watts()
        return Sample(sum(watts.values()) if rail == _ALL else watts[rail])

    def _watts(self) -> dict[str, float]:
        try:
            asked = subprocess.run([self._program, "pmic_read_adc"], capture_output=True, text=True, timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise OSError(f"vcgencmd gave no answer within {_TIMEOUT_S:g} s") from error
        values = {(name, unit): float(value) for name, unit, value in _LINE.findall(asked.stdout)}
        watts = {name: value * values[name, "V"] for (name, unit), value in values.items() if unit == "A" and (name, "V") in values}
        if not watts:
            said = (asked.stderr or asked.stdout).strip().partition("\n")[0]
            raise NoPower(f"raspberry-pi: `vcgencmd pmic_read_adc` gives no currents (a Raspberry Pi before the 5?): {said or 'no answer'}")
        return watts


def find(root: Path, meter: Meter) -> _Controller:
    """The power controller. Raises NoPower, OSError."""
    program = next((root / name for name in _PROGRAMS if (root / name).is_file()), None)
    if program is None:
        raise NoPower("raspberry-pi: no vcgencmd")
    return _Controller(program)
