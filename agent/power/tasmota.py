"""A plug that runs Tasmota, or OpenBeken, which answers alike.

Source: https://tasmota.github.io/docs/Commands (Status 8 and 10: sensors; 8 is the old number) and JSON-Status-Responses: under
`StatusSNS`, `ENERGY.Power` in watts, a list where there are several channels. It updates about once a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.power import Meter, Rail, Sample, web
from edgefarm.energy.signal import Kind

_COMMANDS = ("Status%2010", "Status%208")


class _Plug:
    name = "tasmota"
    poll_ns = 250_000_000
    external = True

    def __init__(self, url: str, channel: int) -> None:
        self._base, self._channel, self._command = url, channel, ""
        self.rails = (Rail(f"wall-{channel}", Kind.MEAN, "everything behind the plug, the power supply's losses too"),)

    def read(self, rail: str) -> Sample:
        """Watts. Raises OSError or ValueError."""
        power = self._power()
        if isinstance(power, list):
            if self._channel >= len(power):
                raise ValueError(f"{self._base}: no channel {self._channel}, there are {len(power)}")
            power = power[self._channel]
        return Sample(web.watts(power, f"{self._base}: StatusSNS.ENERGY.Power"))

    def _power(self) -> Any:
        """By the command that gave it before, or the first that does."""
        for command in [self._command] if self._command else _COMMANDS:
            if (power := _power(web.fetch(f"{self._base}/cm?cmnd={command}"))) is not None:
                self._command = command
                return power
        raise ValueError(f"{self._base} answers without StatusSNS.ENERGY.Power: this model has no power meter")


def find(root: Path, meter: Meter) -> _Plug:
    """The plug at the meter's address. Raises NoPower."""
    return _Plug(web.address("tasmota", meter.url), meter.channel)


def _power(answer: Any) -> Any:
    for key in ("StatusSNS", "ENERGY", "Power"):
        answer = answer.get(key) if isinstance(answer, dict) else None
    return answer
