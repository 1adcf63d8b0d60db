"""Load for an energy window: inferences for a time, with marks of how many had ended when. Runs in the child."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from agent.runner.lanes import uncollected

F = TypeVar("F")
_MARKS = 1000  # at most; the reader interpolates between them


def spend(run: Callable[[F], object], feeds: Sequence[F], duration_ns: int, rate_per_s: float | None) -> list[list[int]]:
    """Runs `feeds` in turn for `duration_ns`, one after the other or `rate_per_s` of them started per second, idle in between.

    Returns:
        [moment, inferences ended] from [beginning, 0] on; moments are of CLOCK_MONOTONIC, which all processes of a host share.
    """
    now, period_ns, every_ns = time.monotonic_ns, int(1e9 / rate_per_s) if rate_per_s else 0, duration_ns // _MARKS
    with uncollected():
        begin = marked = due = now()
        marks, count = [[begin, 0]], 0
        while True:
            run(feeds[count % len(feeds)])
            count += 1
            ended = now()
            over = ended - begin >= duration_ns
            if over or ended - marked >= every_ns:
                marks.append([ended, count])
                marked = ended
            if over:
                return marks
            if period_ns:
                due = max(due + period_ns, ended)
                time.sleep(max(0, min(due, begin + duration_ns) - now()) / 1e9)
                if due >= begin + duration_ns:
                    marks.append([now(), count])
                    return marks
