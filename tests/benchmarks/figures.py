"""Draws the figures of docs/how-we-measure.md from what the benchmarks print and keep. Nothing is drawn that no benchmark measured.

python -m tests.benchmarks.figures --aa KEPT.jsonl --energy ENERGY.json --memory MEMORY.json --out docs

KEPT: of `aa.py --keep`; the others: what a benchmark printed (its last line counts). What is not given is not drawn.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgefarm.statistics import Interval, mean_interval

_WIDE, _INK, _GREY, _GOOD, _BAD = 720, "#1b1f24", "#8a8a8a", "#1a7f37", "#bc4c00"
_AXES = (2.0, 4.0, 10.0, 20.0, 40.0)  # percent, of the axis of differences; what reaches beyond is cut
_SHOWN = 0.8  # of the intervals' ends, that the axis holds
_ROWS = 40  # of a panel
_LIMITS = {"hz350": 1.0, "hz10": 3.0, "hz1": 5.0}  # percent that energy may be wrong by, at each rate


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    for name in ("aa", "energy", "memory"):
        options.add_argument(f"--{name}", type=Path, metavar="FILE")
    options.add_argument("--out", type=Path, default=Path("docs"), metavar="DIR")
    given = options.parse_args()
    given.out.mkdir(exist_ok=True)
    if given.aa:
        kept = [json.loads(line) for line in given.aa.read_text().splitlines()]
        (given.out / "comparisons.svg").write_text(comparisons(kept), encoding="utf-8")
    if given.energy:
        (given.out / "energy.svg").write_text(energy(_last(given.energy)), encoding="utf-8")
    if given.memory:
        (given.out / "memory.svg").write_text(memory(_last(given.memory)), encoding="utf-8")


def _last(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text().splitlines()[-1])
    return found


def comparisons(kept: Sequence[Mapping[str, Any]]) -> str:
    """One row per comparison: its interval, interleaved and in blocks. Left: two copies of one model; right: the second is slower.

    Of many the first ones of each kind.
    """
    taken, kept = len(kept), [k for slow in (False, True) for k in [k for k in kept if bool(k["percent"]) is slow][:_ROWS]]
    panels = [("two copies of one model", [k for k in kept if not k["percent"]])]
    slower = [k for k in kept if k["percent"]]
    if slower:
        panels.append((f"the second {slower[0]['percent']:g} % slower", slower))
    step, top, left, width = 14, 66, 40, 310
    high = top + step * max(len(rows) for _, rows in panels) + 40
    drawn = {id(k): (_ours(k), _percents(in_blocks(k["launches"]))) for k in kept}
    most = _axis([abs(end) for both in drawn.values() for ends in both if ends for end in ends])
    parts = [_text(left, 20, f"{len(kept)} of {taken} comparisons, one row each: 95 % intervals of the difference in percent", size=14)]
    parts.append(_text(left, 40, "fresh launches, interleaved bursts (dashed: too few launches to say)", colour=_GOOD))
    parts.append(_text(left + 400, 40, "the same data, block by block", colour=_BAD))
    for index, (title, rows) in enumerate(panels):
        parts += _panel(left + index * (width + 30), width, top, step, title, rows, drawn, most)
    return _svg(high, parts)


Ends = tuple[float, float]


def _panel(
    left: float, width: float, top: float, step: float, title: str, rows: Sequence[Mapping[str, Any]],
    drawn: Mapping[int, tuple[Ends | None, Ends]], most: float,
) -> Iterator[str]:  # fmt: skip
    bottom = top + step * len(rows)

    def x(percent: float) -> float:
        return left + width * (max(-most, min(most, percent)) / most + 1) / 2

    yield _text(left, top - 8, f"{title}, n = {len(rows)}")
    for percent in (-most, -most / 2, 0, most / 2, most):
        yield _line(x(percent), top, x(percent), bottom, "#ddd")
        yield _text(x(percent), bottom + 16, f"{percent:+g}" if percent else "0", anchor="middle", colour=_GREY)
    truth = rows[0]["percent"] if rows else 0.0
    yield _line(x(truth), top, x(truth), bottom, _INK, 1.5)
    for row, one in enumerate(rows):
        y = top + step * (row + 0.5)
        ours, blocks = drawn[id(one)]
        yield _bar(x, y - 3, *ours, _GOOD) if ours else _line(x(-most), y - 3, x(most), y - 3, _GOOD, dashes=True)
        yield _bar(x, y + 3, *blocks, _BAD)


def _ours(one: Mapping[str, Any]) -> Ends | None:
    """How much slower the second is by the comparison's own interval, in percent; None where it has no end."""
    known = one["interval"]
    if known is None or not 0 < known["low"] <= known["high"] < math.inf:
        return None
    return 100 / known["high"] - 100, 100 / known["low"] - 100


def _percents(logs: Interval) -> Ends:
    return 100 * math.expm1(logs.low), 100 * math.expm1(logs.high)


def _axis(ends: Sequence[float]) -> float:
    return next((a for a in _AXES if sum(e <= a for e in ends) >= _SHOWN * len(ends)), _AXES[-1])


def in_blocks(launches: Sequence[Mapping[str, Any]]) -> Interval:
    """ln(second / first) as one finds it who measures the first model in one half of the launches, then the second in the other half.

    As if bursts were independent (Welch's variance, the smaller count's degrees).
    """
    half = len(launches) // 2
    parts = [_fields(launch) for launch in launches]
    before = [math.log(ns) for reference, _ in parts[:half] for ns in reference]
    after = [math.log(ns) for _, value in parts[half:] for ns in value]
    one, other = mean_interval(before), mean_interval(after)
    centre, width = other.value - one.value, math.hypot(one.high - one.value, other.high - other.value)
    return Interval(centre, centre - width, centre + width, len(before) + len(after))


def _fields(launch: Mapping[str, Any] | Sequence[Any]) -> tuple[Sequence[int], Sequence[int]]:
    """Bursts of the first and of the second, in ns; named tuples are kept as lists."""
    return (launch["reference_ns"], launch["value_ns"]) if isinstance(launch, Mapping) else (launch[0], launch[1])


def energy(found: Mapping[str, Any]) -> str:
    """The largest error per meter's rate, beside the limit that it has to keep."""
    rates = [name for name in _LIMITS if name in found["error_percent"]]
    parts = [_text(40, 20, f"Energy against a synthetic source: largest error of {found['n']} measurements, percent", size=14)]
    scale = 460 / max(_LIMITS.values())
    for row, name in enumerate(rates):
        y, error, limit = 54 + 34 * row, float(found["error_percent"][name]), _LIMITS[name]
        parts.append(_text(40, y + 4, f"{name.removeprefix('hz')} Hz"))
        parts.append(
            f'<rect x="110" y="{y - 8}" width="{min(error, 5.0) * scale:.1f}" height="16" fill="{_GOOD if error <= limit else _BAD}"/>'
        )
        parts.append(_line(110 + limit * scale, y - 13, 110 + limit * scale, y + 13, _INK, 2))
        parts.append(_text(118 + max(min(error, 5.0), limit) * scale, y + 4, f"{error:.2f} % (limit {limit:g} %)"))
    parts.append(_text(40, 54 + 34 * len(rates), _said(found), colour=_GREY))
    return _svg(70 + 34 * len(rates), parts)


def memory(found: Mapping[str, Any]) -> str:
    """What a model adds by our measure over what it adds by the operating system's, one row per model and runtime."""
    rows = found["models"]
    parts = [_text(40, 20, f"Memory of a model: ours over what {found['told_by']} says of a bare script, n = {found['n']} each", size=14)]
    left, width, most = 260, 380, 0.1

    def x(ratio: float) -> float:
        return left + width * (max(-most, min(most, ratio - 1)) / most + 1) / 2

    bottom = 40 + 24 * len(rows)
    for ratio in (0.9, 0.95, 1.0, 1.05, 1.1):
        parts.append(_line(x(ratio), 36, x(ratio), bottom, _INK if ratio == 1.0 else "#ddd"))
        parts.append(_text(x(ratio), bottom + 16, f"{ratio:g}", anchor="middle", colour=_GREY))
    for row, one in enumerate(rows):
        y, ratio = 52 + 24 * row, float(one["ratio_to_os"])
        parts.append(_text(40, y + 4, f"{one['name']}, {one['runtime']}"))
        parts.append(f'<circle cx="{x(ratio):.1f}" cy="{y}" r="5" fill="{_GOOD if abs(ratio - 1) <= 0.05 else _BAD}"/>')
    parts.append(_text(40, bottom + 40, _said(found), colour=_GREY))
    return _svg(bottom + 54, parts)


def _said(found: Mapping[str, Any]) -> str:
    return f"{found['command']}; {found['machine']}"


def _bar(x: Any, y: float, low: float, high: float, colour: str) -> str:
    return _line(x(low), y, max(x(high), x(low) + 1.5), y, colour, 3)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, *, dashes: bool = False) -> str:
    style = f'stroke="{colour}" stroke-width="{width:g}"' + (' stroke-dasharray="4 4"' if dashes else "")
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", colour: str = _INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{text}</text>'


def _svg(high: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {high:g}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{_WIDE}" height="{high:g}" fill="white"/>', *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
