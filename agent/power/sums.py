"""A source of several rails that are read one by one, with their sum in front where no single one holds the whole board."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from agent.power import Rail, Sample


class Summed:
    """A local source.

    Args:
        name: its row in the table.
        rails: what it measures, the first to measure a device by.
        reads: how to read each, by rail; watts or joules.
        summed: rails whose sum goes in front; empty: none does.
        includes: what the sum holds.
        poll_ns: how often to ask.
    """

    external = False

    def __init__(
        self, name: str, rails: Sequence[Rail], reads: Mapping[str, Callable[[], float]], summed: Sequence[str] = (), includes: str = "",
        *, poll_ns: int,
    ) -> None:  # fmt: skip
        self.name, self.poll_ns = name, poll_ns
        self._reads = dict(reads)
        self.rails = tuple(rails)
        if len(summed) > 1:
            parts = [r for r in rails if r.name in summed]
            names = tuple(r.name for r in parts)
            whole = replace(parts[0], name="+".join(names), includes=includes, period_ns=min(r.period_ns for r in parts), sum_of=names)
            self._reads[whole.name] = lambda: sum(reads[part.name]() for part in parts)
            self.rails = (whole, *rails)

    def read(self, rail: str) -> Sample:
        """A reading. Raises OSError or ValueError."""
        return Sample(self._reads[rail]())
