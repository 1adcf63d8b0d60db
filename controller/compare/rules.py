"""What a comparison is asked: what counts as the same, which limits hold, how long it may take. And its answers' names."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from edgefarm.statistics.sequential import PLANNED

MARGIN = 0.01  # differences within it are called the same, unless a limit says otherwise
# Fresh launches of both sides after each round: the interval is renewed at these counts (`edgefarm.statistics.anytime_interval`). More
# rounds than the first come only while nothing is decided and the device's budget lasts.
ROUNDS = (PLANNED // 3, 2 * PLANNED // 3, PLANNED, 2 * PLANNED, 4 * PLANNED, 8 * PLANNED)


class Gate(str, Enum):
    """Whether a limit holds. `unknown`: the interval holds it, or there is no number."""

    WITHIN = "within"
    BEYOND = "beyond"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Rules:
    """The question.

    Attributes:
        margin: relative; a difference that is surely no larger is none.
        max_slowdown, max_energy: how much more time and energy per inference the second side may take, relative; None: no limit.
        confidence: of each interval.
    """

    margin: float = MARGIN
    max_slowdown: float | None = None
    max_energy: float | None = None
    confidence: float = 0.95


def gate(low: float, high: float, limit: float) -> Gate:
    """Holds an interval of a relative increase (0.02 = 2 % more) against a limit: beyond only if its good end is."""
    if low > limit:
        return Gate.BEYOND
    return Gate.WITHIN if high <= limit else Gate.UNKNOWN
