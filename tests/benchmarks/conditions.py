"""Are bad conditions found in real launches, and what does looking for them cost?

Launches of two copies of one model; some are disturbed on purpose, in random order with others that are not. Progress on stderr; the
last line on stdout is one JSON object: for each cause how many of how many were found under its right name, what was said of launches
that we did not disturb (the machine may have been busy), and the CPU time of the watch as a share of one core.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from agent.bench.conditions import SAMPLE_NS, Watch
from agent.runner.limits import WATCH_NS
from controller.verdicts import verdict
from edgefarm.model import Verdict
from tests.fakes import disturber
from tests.integration.disturbed_place import Place

Disturb = Callable[[], AbstractContextManager[None]]
_SAMPLES = 300


def _causes(place: Place) -> dict[str, tuple[Disturb, Verdict, int]]:
    """By name: how it is made, its verdict, and the bursts that it needs."""

    def flag(file: str, content: str) -> Disturb:
        path = place.root / file
        calm = path.read_text()
        return lambda: disturber.raised_flag(path, content, calm, 0.3, 0.5)

    return {
        "stress": (disturber.stress, Verdict.INTERFERED, 30),
        "sigstop": (disturber.stopped_runner, Verdict.INTERFERED, 30),
        "frequency": (lambda: disturber.falling_frequency(place.root), Verdict.THROTTLED, 100),
        "frequency_limit": (flag("sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "1200000\n"), Verdict.THROTTLED, 30),
        "firmware_flag": (flag("sys/devices/platform/soc/soc:firmware/get_throttled", "10001\n"), Verdict.THROTTLED, 30),
        "cooling": (flag("sys/class/thermal/cooling_device0/cur_state", "4\n"), Verdict.THROTTLED, 30),
    }


def main() -> None:
    """Runs it; the first argument is the number of launches of each kind."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        causes = _causes(place)
        plan = [name for name in causes for _ in range(count)] + [""] * count * 2
        random.Random(0).shuffle(plan)
        found: dict[str, list[str]] = {name: [] for name in plan}
        for index, name in enumerate(plan):
            disturb, _, bursts = causes[name] if name else (contextlib.nullcontext, None, 30)
            with disturb():
                launch = place.launch(index, bursts=bursts)
            said, detail = verdict([launch])
            found[name].append(said.value)
            print(f"{index + 1}/{len(plan)} {name or 'undisturbed'}: {said.value}: {detail}", file=sys.stderr)
        cost = _cost(place.root)
    undisturbed = found.pop("")
    caught = {name: {"n": len(x), "caught": x.count(causes[name][1].value)} for name, x in sorted(found.items())}
    print(
        json.dumps(
            {
                "injected": caught, "caught_ratio": sum(c["caught"] for c in caught.values()) / sum(c["n"] for c in caught.values()),
                "undisturbed": {v: undisturbed.count(v) for v in sorted(set(undisturbed))}, "watch_core_ratio": round(cost, 5),
                "n": len(plan), "load_1m": os.getloadavg()[0], "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "command": f"python -m tests.benchmarks.conditions {count}",
            }
        )
    )  # fmt: skip


def _cost(root: Path) -> float:
    """CPU seconds per second that looking at a board with one thermal zone and a frequency per core takes."""
    watch = Watch(root)
    watch.follow(os.getpid())
    began = time.process_time()
    for _ in range(_SAMPLES):
        watch._sample()
        for _ in range(SAMPLE_NS // WATCH_NS):
            watch._competition.look()
    return (time.process_time() - began) / (_SAMPLES * SAMPLE_NS / 1e9)


if __name__ == "__main__":
    main()
