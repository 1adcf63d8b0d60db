"""What one screening launch tells of candidates: who is worth comparing, and which are alike. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

from controller.evidence import Entry, Evidence, Group, Launch
from controller.verdicts import statistic

NOISE_FLOOR = 0.01  # differences below this are called equal even where an interval excludes 1; without a control arm
EQUAL = 0.02  # the leader may be so much slower than another: more launches would not matter to anybody
_BETWEEN_LAUNCHES = 0.015  # spread of a ratio from launch to launch that a single one has to allow for: .4 % to 5 %, by machine and model
_SCREENED_Z = 2.326  # one-sided 1 %


def screened(launch: Launch, objective: str) -> tuple[float, float]:
    """Log of candidate over reference in a screening launch, and its standard error by the bursts (0 where there are none)."""
    value = math.log(statistic(launch.result, objective) / statistic(launch.reference, objective))
    mine, base = launch.result.burst_p50_ns, launch.reference.burst_p50_ns
    if len(mine) != len(base) or len(mine) < 3:
        return value, 0.0
    return value, stdev(math.log(max(1, m) / max(1, b)) for m, b in zip(mine, base)) / math.sqrt(len(mine))


def close(one: tuple[float, float], other: tuple[float, float], launches: int = 1) -> bool:
    """Whether a candidate is worth running, by its screening, where another one runs.

    It is if it may be faster by more than `EQUAL` (one-sided 99 %), or looks as fast: of equals the smaller, then the more accurate wins.

    Args:
        one: log ratio to the baseline, with its standard error within the launch.
        other: the same of the other; of several `launches` the standard error holds what differs between them.
    """
    difference = one[0] - other[0]
    single = 1 if launches > 1 else 2  # of the two, those known from one launch
    doubt = _SCREENED_Z * math.sqrt(one[1] ** 2 + other[1] ** 2 + single * _BETWEEN_LAUNCHES**2)
    return difference <= max(NOISE_FLOOR, doubt - math.log1p(EQUAL))


def alike(group: Group, one: Entry, other: Entry, evidence: Evidence) -> bool:
    """Whether two candidates take the same time as far as anybody can tell before they are compared.

    Their files are of one form (`optimizer.form`), run by one runtime with the same options, and their screenings don't tell them apart.
    """
    if not one.form or one.form != other.form or one.look != other.look:
        return False
    if (one.candidate.runtime, one.candidate.options) != (other.candidate.runtime, other.candidate.options):
        return False
    launches = [evidence.screened.get(e.key) for e in (one, other)]
    a, b = (None if x is None else screened(x, group.objective) for x in launches)
    return a is not None and b is not None and close(a, b) and close(b, a)


def in_classes(group: Group, entries: Sequence[Entry], evidence: Evidence) -> list[list[Entry]]:
    """Entries in classes of those that are `alike` to the class's first, in the order of their firsts."""
    classes: list[list[Entry]] = []
    for entry in entries:
        for found in classes:
            if alike(group, found[0], entry, evidence):
                found.append(entry)
                break
        else:
            classes.append([entry])
    return classes
