"""Whatever a Prometheus server knows in watts: a rack's meter, a PDU, another exporter.

Source: https://prometheus.io/docs/prometheus/latest/querying/api: an instant query gives `[unix seconds, "value"]` at the time of
evaluation, not of the scrape, so where the expression is a selector its raw samples are asked for, as EXPRESSION[20s]: they have stamps
of their own. Of other expressions only a changed value shows an update.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from agent.power import Meter, NoPower, Rail, Sample, web
from edgefarm.energy.signal import Kind

_SELECTOR = re.compile(r"[a-zA-Z_:][\w:]*(\{[^{}]*\})?")
_LOOK_BACK = "20s"


class _Server:
    name = "prometheus"
    poll_ns = 250_000_000
    external = True

    def __init__(self, url: str, query: str) -> None:
        self._query = query
        asked = f"{query}[{_LOOK_BACK}]" if _SELECTOR.fullmatch(query) else query
        self._url = f"{url}/api/v1/query?{urlencode({'query': asked})}"
        self.rails = (Rail(query, Kind.MEAN, f"what {query} measures"),)

    def read(self, rail: str) -> Sample:
        """Watts, with the stamp of the sample. Raises OSError or ValueError."""
        answer = web.fetch(self._url)
        if not isinstance(answer, dict) or answer.get("status") != "success":
            said = answer.get("error") if isinstance(answer, dict) else answer
            raise ValueError(f"{self._url}: {said}")
        found = answer["data"]["result"]
        if answer["data"]["resultType"] == "scalar":
            return Sample(_sample(found, self._url).value)
        if len(found) != 1:
            raise ValueError(f"query {self._query!r} gives {len(found)} series, one is needed: sum them, or select one by its labels")
        if "values" in found[0]:
            return _sample(found[0]["values"][-1], self._url)
        return Sample(_sample(found[0]["value"], self._url).value)


def find(root: Path, meter: Meter) -> _Server:
    """The server at the meter's address. Raises NoPower."""
    if not meter.query:
        raise NoPower("prometheus: no query; set `query` in [power] of agent.toml to an expression that gives watts")
    return _Server(web.address("prometheus", meter.url), meter.query)


def _sample(pair: Any, place: str) -> Sample:
    try:
        stamp, value = float(pair[0]), float(pair[1])
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{place}: no sample: {pair!r}") from error
    if value != value:
        raise ValueError(f"{place}: the value is NaN")
    return Sample(value, stamp)
