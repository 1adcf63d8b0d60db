"""The planner's race against measuring everything, on the three examples; and the replay of searches on real latency tables.

Examples run on this machine, in copies of their folders, by what `controller deploy --until select` does. Then every candidate is measured
in full with the same agents: accuracy, memory, and ten launches in rounds with the baseline. Device time is the sum over attempts, without
what the report has of winners once they are chosen (`FOR_THE_REPORT`): that is the same whoever chose them. Measuring everything means on
every device. Devices of a class would show the same, so it is done on one of them and counted for each; `device_time_ratio_shared` counts
it once, as if racing alone did not know classes. The fastest of many measured by ten launches is partly the luckiest, so how much slower
the race's winner is comes from fresh launches that hold both, which count for neither side. Run it on a quiet machine.

Progress on stderr; the last line on stdout is one JSON object. `--svg FILE` writes the replay's curves.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import yaml

from controller import orders
from controller.cli.deploy import controlled
from controller.config import load_fleet
from controller.control import Control
from controller.driver import Driver
from controller.events import Events
from controller.evidence import ACCURACY, COMPARE, EVALUATE, PROFILE, Entry, Evidence, Group, stage_of
from controller.fleetplan import Build, group
from controller.limits import broken
from controller.planner import FINALISTS, Step
from controller.selection import choose
from controller.trials import Trials
from controller.verdicts import against, speedup
from controller.workload import load_workload
from edgefarm.statistics import Interval
from tests.benchmarks import replay
from tests.examples import EXAMPLES

EXHAUSTIVE = 10  # launches of every candidate
DUEL = 20  # fresh ones of the race's winner and the exhaustive best
FOR_THE_REPORT = (EVALUATE, PROFILE)


def exhaustive(group: Group, evidence: Evidence) -> Step:
    """Everything of everybody: accuracy, memory, and full comparisons in rounds with the baseline."""
    others = group.entries[1:]
    passes = [make(group, e) for e in group.entries for make in (orders.accuracy, orders.memory)]
    if left := tuple(o for o in passes if o.id not in evidence.ended):
        return Step(ACCURACY, left)
    batches = [others[i : i + FINALISTS] for i in range(0, len(others), FINALISTS)]
    rounds = [orders.comparison(group, [group.baseline, *batch], range(EXHAUSTIVE)) for batch in batches]
    return Step(COMPARE, tuple(o for o in rounds if o.id not in evidence.ended))


def duel(pairs: Mapping[str, tuple[Entry, Entry] | None], group: Group, evidence: Evidence) -> Step:
    """The race's winner and the exhaustive best, by device, in launches of both and the baseline."""
    both = [pair for name in group.devices if (pair := pairs[name]) is not None and pair[0] != pair[1]]
    found = [orders.comparison(group, [group.baseline, *(e for e in pair if not e.baseline)], range(DUEL)) for pair in both]
    return Step(COMPARE, tuple({o.id: o for o in found if o.id not in evidence.ended}.values()))


def device_seconds(control: Control, run: str) -> dict[str, float]:
    """Device time of a run, by stage."""
    found: dict[str, float] = {}
    for status in control.progress(run).orders:
        stage = stage_of(status.order.id)
        found[stage] = found.get(stage, 0.0) + sum(a.duration_ns for a in status.attempts) / 1e9
    return found


def logs(entry: Entry, evidence: Evidence) -> float:
    """Mean log of a candidate's latency over the baseline's, in the exhaustive launches."""
    if entry.baseline:
        return 0.0
    return -math.log(speedup(evidence.launches[entry.key]).value) if entry.key in evidence.launches else math.inf


def feasible(group: Group, evidence: Evidence) -> list[Entry]:
    """Candidates that ran, and keep to all limits by what was measured in full."""
    return [e for e in group.entries if e.key not in evidence.failures and e.key in evidence.scores and not broken(group, e, evidence)]


def example(name: str, folder: Path) -> dict[str, Any]:
    """Races, then measures everything, in a copy of an example that has been prepared."""
    fleet = load_fleet(folder / "edge.yaml")
    workload, state = load_workload(fleet), folder / ".edgefarm" / name
    with Events() as events, controlled(fleet, state) as (known, control):
        driver = Driver(known, control, workload, state, events)
        document = driver.drive("select")
        raced = device_seconds(control, driver.run.name)
        print(f"{name}: raced: {raced}", file=sys.stderr, flush=True)
        trials = Trials(known, control, workload, state, events, "exhaustive", {})
        source = Build(workload.source.artifact, "source")
        builds = [trials.build(Path(v["file"]), v["variant"]) for v in document["variants"]]
        groups, _ = group(source, builds, trials.present()[0], trials.setting())
        evidence, _ = trials.measure(groups, exhaustive)
        full = device_seconds(control, trials.run.name)
        winners = {d["name"]: d["winner"] for d in document["devices"]}
        pairs = {n: _pair(g, evidence[n], winners[n]) for g in groups for n in g.devices}
        again = Trials(known, control, workload, state, events, "duel", {})
        met, _ = again.measure(group(source, builds, again.present()[0], again.setting())[0], partial(duel, pairs))
        devices = [_device(g, n, evidence[n], pairs[n], met[n]) for g in groups for n in g.devices]
    ratios = [d["latency_ratio_to_exhaustive"] for d in devices if d["latency_ratio_to_exhaustive"] is not None]
    choosing = sum(seconds for stage, seconds in raced.items() if stage not in FOR_THE_REPORT)
    classes = {g.device_class for g in groups}
    return {
        "name": name,
        "device_time_ratio": round(choosing / (sum(full.values()) * len(devices) / len(classes)), 4),
        "device_time_ratio_shared": round(choosing / sum(full.values()), 4),
        "latency_ratio_to_exhaustive": max(ratios) if len(ratios) == len(devices) else None,
        "device_seconds": {"raced": _rounded(raced), "exhaustive": _rounded(full)},
        "candidates": [len(g.entries) for g in groups],
        "devices": devices,
    }


def _pair(group: Group, evidence: Evidence, winner: Mapping[str, Any] | None) -> tuple[Entry, Entry] | None:
    """The race's winner, and the best by what was measured in full; None without one of them."""
    best = min(feasible(group, evidence), key=lambda e: (logs(e, evidence), e.key), default=None)
    chosen = (winner["artifact"]["digest"], winner["options"]) if winner else None
    mine = [e for e in group.entries if (e.candidate.artifact.digest, dict(e.candidate.options)) == chosen]
    return (mine[0], best) if best and mine else None


def _device(group: Group, name: str, evidence: Evidence, pair: tuple[Entry, Entry] | None, met: Evidence) -> dict[str, Any]:
    chosen = choose(group, evidence, name).winner
    ratio: Interval | None = Interval(1.0, 1.0, 1.0, 0) if pair and pair[0] == pair[1] else None
    if pair and ratio is None:
        winner, best = (met.launches.get(e.key, ()) for e in pair)
        ratio = against(best, winner, objective=group.objective)
    return {
        "name": name,
        "winner": pair[0].variant if pair else None,
        "best": pair[1].variant if pair else None,
        "exhaustive_choice": chosen.variant if chosen else None,
        "latency_ratio_to_exhaustive": None if ratio is None else round(ratio.value, 4),
        "ci95": None if ratio is None else [round(ratio.low, 4), round(ratio.high, 4)],
        "launches": round(fmean(len(x) for x in evidence.launches.values()), 1) if evidence.launches else 0,
    }


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(value, 1) for stage, value in seconds.items()}


def prepared(name: str, base: Path, recipes: str) -> Path:
    """A copy of an example without state of earlier runs; what it has to download or make is made there."""
    folder = base / name
    shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns(".edgefarm", "__pycache__"))
    script = folder / "prepare.py"
    if script.exists() and not (folder / "build" / "model.onnx").exists():
        subprocess.run([sys.executable, str(script)], check=True, stdout=sys.stderr, timeout=900)
    if recipes == "auto":
        file = yaml.safe_load((folder / "edge.yaml").read_text())
        file["optimize"] = {"recipes": "auto"}
        (folder / "edge.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    return folder


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--examples", nargs="*", default=["fashion", "imagenet", "ocr"], help="which; none: the replay only")
    options.add_argument("--recipes", choices=["auto", "file"], default="auto", help="all that is made of a model, or what its file names")
    options.add_argument("--tables", type=Path, default=replay.TABLES, help="latency tables, .npz")
    options.add_argument("--draws", type=int, default=5, help="of the replay; 0: the examples only")
    options.add_argument("--svg", type=Path, help="where to write the replay's curves")
    given = options.parse_args()
    result: dict[str, Any] = {"recipes": given.recipes}
    with tempfile.TemporaryDirectory() as base:
        result["examples"] = [example(name, prepared(name, Path(base), given.recipes)) for name in given.examples]
    if given.draws:
        result["replay"], curves = replay.run(given.tables, given.draws)
        if given.svg:
            given.svg.write_text(replay.svg(curves), encoding="utf-8")
    result["n"] = result.get("replay", {}).get("n", 0)
    result["machine"] = f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}"
    result["command"] = "make bench-racing"
    print(json.dumps(result))


if __name__ == "__main__":
    main()
