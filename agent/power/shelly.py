"""A Shelly plug or relay with a power meter, second generation and newer (Plus, Pro, Gen3, Gen4).

Source: https://shelly-api-docs.shelly.cloud/gen2/ComponentsAndServices/Switch: `apower`, watts measured last, `aenergy.total`, watt
hours. The total has steps of a milliwatt hour (3.6 J) and is written a minute at a time, so power is taken. It updates about once a
second, as seen, not documented.
"""

from __future__ import annotations

from pathlib import Path

from agent.power import Meter, Rail, Sample, web
from edgefarm.energy.signal import Kind


class _Plug:
    name = "shelly"
    poll_ns = 250_000_000
    external = True

    def __init__(self, url: str, channel: int) -> None:
        self._url = f"{url}/rpc/Switch.GetStatus?id={channel}"
        self.rails = (Rail(f"wall-{channel}", Kind.MEAN, "everything behind the plug, the power supply's losses too", "1 %"),)

    def read(self, rail: str) -> Sample:
        """Watts. Raises OSError or ValueError."""
        status = web.fetch(self._url)
        if not isinstance(status, dict) or "apower" not in status:
            raise ValueError(f"{self._url}: no `apower`: this model has no power meter, or the channel is another")
        return Sample(web.watts(status["apower"], f"{self._url}: apower"))


def find(root: Path, meter: Meter) -> _Plug:
    """The plug at the meter's address. Raises NoPower."""
    return _Plug(web.address("shelly", meter.url), meter.channel)
