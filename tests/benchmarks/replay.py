"""Fifteen measurements of two hundred: the search of `controller.transfer` on real latency tables of 27 devices, each unseen in turn.

A replay draws 200 cells of NAS-Bench-201 and takes one device's table as the truth, of which only what is asked for is told, with noise;
the other devices' tables are known. The regret is how much slower the fastest candidate by the noisy measurements really is than the best.
Progress on stderr; the last line on stdout is one JSON object. `--svg FILE` writes the curves.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from controller.transfer import Table, most_promising, predict

TABLES = Path(os.environ.get("EDGEFARM_LATENCY_TABLES", Path(__file__).parents[1] / "data" / "nasbench201_latency.npz"))
CELLS, MEASURED, SHOWN, NOISE, WAVE = 200, 15, 30, 0.02, 3
STRATEGIES = ("transfer", "transfer, no sibling devices", "by the others' mean", "at random")
Tables = Mapping[str, NDArray[np.float64]]
Next = Callable[[Table, int], list[str]]


def tables_of(path: Path) -> dict[str, NDArray[np.float64]]:
    """Log latency of every cell, by device. A reading of 0 is taken as the least there is."""
    with np.load(path, allow_pickle=False) as file:
        return {name: np.log(np.maximum(file[name].astype(np.float64), 1e-9)) for name in file.files if name != "architecture"}


def family(device: str) -> str:
    """What devices of one make have in common: a GPU at three batch sizes, the Xeons of one grade, the phones of one maker."""
    return "_".join(device.split("_")[:2]) if device.startswith("titan_") else device.split("_")[0].rstrip("0123456789")


def replay(tables: Tables, device: str, draw: int) -> dict[str, Any]:
    """All strategies on one held-out device and one draw of cells: regret after each measurement, and rank correlation after ten."""
    rng = np.random.default_rng([len(device), sum(map(ord, device)), draw])
    cells = np.random.default_rng(draw).choice(len(tables[device]), CELLS, replace=False)
    keys = [str(c) for c in cells]
    truth = dict(zip(keys, map(float, tables[device][cells])))
    told = {k: v + float(rng.normal(0, NOISE)) for k, v in truth.items()}
    others = {n: dict(zip(keys, map(float, t[cells]))) for n, t in tables.items() if n != device}
    distant = [t for n, t in others.items() if family(n) != family(device)]
    near = list(others.values())
    mean = sorted(keys, key=lambda k: sum(t[k] - _median(t) for t in near))
    shuffled = [keys[i] for i in rng.permutation(CELLS)]
    plans: dict[str, Next] = {
        STRATEGIES[0]: lambda known, n: most_promising(known, near, keys, n, NOISE),
        STRATEGIES[1]: lambda known, n: most_promising(known, distant, keys, n, NOISE),
        STRATEGIES[2]: lambda known, n: [k for k in mean if k not in known][:n],
        STRATEGIES[3]: lambda known, n: [k for k in shuffled if k not in known][:n],
    }
    curves = {name: _curve(plan, truth, told) for name, plan in plans.items()}
    return {"device": device, "curves": curves, "spearman": [_spearman_at_10(t, keys, truth, told) for t in (near, distant)]}


def _median(table: Table) -> float:
    return float(np.median(list(table.values())))


def _curve(plan: Next, truth: Table, told: Table) -> list[float]:
    """Regret after 1, 2, … measurements, which come in waves as a screening's do."""
    known: dict[str, float] = {}
    curve: list[float] = []
    least = min(truth.values())
    while len(known) < SHOWN:
        for key in plan(known, WAVE):
            known[key] = told[key]
            curve.append(math.expm1(truth[min(known, key=lambda k: known[k])] - least))
    return curve[:SHOWN]


def _spearman_at_10(tables: Sequence[Table], keys: Sequence[str], truth: Table, told: Table) -> float:
    """Rank correlation of predicted and true latency of all cells, ten being measured."""
    known: dict[str, float] = {}
    while len(known) < 10:
        known.update({k: told[k] for k in most_promising(known, tables, keys, 1, NOISE)})
    predictions = predict(known, tables, keys, NOISE)
    ranks = [_ranks([values[k] for k in keys]) for values in ({k: p.mean for k, p in predictions.items()}, truth)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Ranks, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return ranks


def run(path: Path, draws: int) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The figures, and the mean curve of each strategy."""
    tables = tables_of(path)
    with ProcessPoolExecutor(max(1, min(4, (psutil.cpu_count() or 2) - 1))) as pool:
        tasks = [(device, pool.submit(replay, tables, device, draw)) for device in tables for draw in range(draws)]
        found = []
        for i, (device, task) in enumerate(tasks):
            found.append(task.result())
            if (i + 1) % draws == 0:
                print(f"replay: {device}: {i + 1} of {len(tasks)}", file=sys.stderr, flush=True)
    curves = {name: [float(np.mean([f["curves"][name][i] for f in found])) for i in range(SHOWN)] for name in STRATEGIES}
    ours = np.array([[f["curves"][name][MEASURED - 1] for f in found] for name in STRATEGIES[:2]]).reshape(2, -1, draws)
    figures = {
        f"regret_percent_at_{MEASURED}": round(100 * float(ours[0].mean()), 3),
        f"regret_percent_at_{MEASURED}_without_siblings": round(100 * float(ours[1].mean()), 3),
        "worst_device_percent": round(100 * float(ours[0].mean(axis=1).max()), 3),
        "at_random_percent": round(100 * curves[STRATEGIES[3]][MEASURED - 1], 3),
        "by_mean_percent": round(100 * curves[STRATEGIES[2]][MEASURED - 1], 3),
        "spearman_at_10": round(float(np.mean([f["spearman"][0] for f in found])), 4),
        "spearman_at_10_without_siblings": round(float(np.mean([f["spearman"][1] for f in found])), 4),
        "devices": len(tables),
        "candidates": CELLS,
        "noise": NOISE,
        "n": len(found),
    }
    return figures, curves


def svg(curves: Mapping[str, Sequence[float]]) -> str:
    """The curves as a picture; regret in percent on a logarithmic axis."""
    wide, high, left, top, bottom = 720, 400, 60, 30, 50
    low, most = 0.05, 200.0
    colours = dict(zip(STRATEGIES, ("#1b6ca8", "#53a548", "#d98c1f", "#8a8a8a")))

    def place(n: float, regret: float) -> tuple[float, float]:
        share = (math.log(min(most, max(low, 100 * regret))) - math.log(low)) / (math.log(most) - math.log(low))
        return left + (wide - left - 220) * (n - 1) / (SHOWN - 1), top + (high - top - bottom) * (1 - share)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif" font-size="12">',
             f'<rect width="{wide}" height="{high}" fill="white"/>']  # fmt: skip
    for percent in (0.1, 1.0, 10.0, 100.0):
        x, y = place(1, percent / 100)
        parts.append(f'<line x1="{x:.0f}" x2="{wide - 220}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 8:.0f}" y="{y + 4:.1f}" text-anchor="end">{percent:g} %</text>')
    for n in (1, 5, 10, 15, 20, 25, 30):
        x, y = place(n, low / 100)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{n}</text>')
    for i, (name, curve) in enumerate(curves.items()):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(n + 1, r) for n, r in enumerate(curve)))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
        parts.append(f'<text x="{wide - 210}" y="{top + 20 + 20 * i}" fill="{colours[name]}">{name}</text>')
    parts.append(f'<text x="{left}" y="18">Mean regret over 27 unseen devices, 200 candidates each</text>')
    parts.append(f'<text x="{(left + wide - 220) / 2:.0f}" y="{high - 8}" text-anchor="middle">candidates measured</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--tables", type=Path, default=TABLES, help="latency tables, .npz (default: $EDGEFARM_LATENCY_TABLES or tests/data)"
    )
    options.add_argument("--draws", type=int, default=5, help="draws of candidates for each device")
    options.add_argument("--svg", type=Path, help="where to write the curves")
    given = options.parse_args()
    figures, curves = run(given.tables, given.draws)
    if given.svg:
        given.svg.write_text(svg(curves), encoding="utf-8")
    machine = f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}"
    print(json.dumps({**figures, "machine": machine, "command": "make bench-replay"}))


if __name__ == "__main__":
    main()
