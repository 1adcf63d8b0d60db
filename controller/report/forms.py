"""Forms of a report: table, json, csv, html, junit."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table
from rich.text import Text

Report = Mapping[str, Any]
_SHOWN_CHARACTERS = 300
_CSV_COLUMNS = """run device class variant runtime threads winner feasible pareto rejected p50_ns p90_ns p99_ns speedup speedup_low
speedup_high accuracy accuracy_n bytes peak_rss_bytes verdict format options emulated"""
_COLUMNS = ("", "variant", "runtime", "threads", "p50 ms", "speed-up (95 %)", "accuracy", "size MiB", "memory MiB", "why not")


def render(report: Report, form: str, width: int | None = None) -> str:
    """The report as text in one of FORMS."""
    if form == "table":
        return table(report, width)
    return FORMS[form](report)


def as_json(report: Report) -> str:
    """One JSON document."""
    return json.dumps(report, indent=2, allow_nan=False)


def _row(candidate: Mapping[str, Any]) -> dict[str, str]:
    speedup, latency, accuracy = candidate["speedup_vs_baseline"], candidate["latency_ns"], candidate["accuracy"]
    screening, memory = candidate["screening"], candidate["memory"]
    if latency:
        p50 = f"{latency['p50']['value'] / 1e6:.3f}"
        ends = speedup["ci95"] if speedup else None
        ratio = f"{speedup['ratio']:.2f}" + (f" ({ends[0]:.2f}-{ends[1]:.2f})" if ends and ends[0] < ends[1] else "")
    elif screening:
        p50, ratio = f"~{screening['p50_ns'] / 1e6:.3f}", f"~{screening['speedup']:.2f}"
    else:
        p50 = ratio = "-"
    return {
        "variant": candidate["variant"],
        "runtime": _runtime(candidate),
        "threads": str(candidate["options"].get("threads", "-")),
        "p50 ms": p50,
        "speed-up (95 %)": ratio,
        "accuracy": f"{accuracy['value']:.4f}" if accuracy and accuracy["value"] is not None else "-",
        "size MiB": f"{candidate['artifact']['bytes'] / 2**20:.2f}",
        "memory MiB": f"{memory['peak_rss_bytes'] / 2**20:.1f}" if memory else "-",
        "why not": _one_line(candidate["rejected"] or ""),
    }


def _runtime(candidate: Mapping[str, Any]) -> str:
    """With its options but the number of threads, and what it chose by itself: `tflite xnnpack`, `openvino CPU bf16`."""
    options = [str(value).removesuffix("ExecutionProvider") for name, value in candidate["options"].items() if name != "threads"]
    return " ".join([candidate["runtime"], *options, *candidate.get("chosen", {}).values()])


def _order(device: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Winner first, then by what was compared and by speed."""

    def rank(candidate: Mapping[str, Any]) -> tuple[bool, bool, float]:
        latency, screening = candidate["latency_ns"], candidate["screening"]
        value = latency["p50"]["value"] if latency else screening["p50_ns"] if screening else float("inf")
        return candidate is not device["winner"] and candidate != device["winner"], latency is None, value

    return sorted(device["candidates"], key=rank)


def table(report: Report, width: int | None = None) -> str:
    """For people."""
    console = Console(file=io.StringIO(), width=width or 150, force_terminal=False, highlight=False)
    for device in report["devices"]:
        console.print(Text(f"\n{device['name']}: {_verdict_line(device)}", style="bold"))
        if device.get("caveat"):
            console.print(Text(f"  {device['caveat']}"))
        grid = Table(box=None, pad_edge=False, header_style="dim")
        for column in _COLUMNS:
            grid.add_column(column, overflow="fold", justify="right" if column[:1].isdigit() or "MiB" in column else "left")
        for candidate in _order(device):
            mark = "*" if candidate == device["winner"] else "=" if candidate == device["baseline"] else ""
            grid.add_row(mark, *(Text(value) for value in _row(candidate).values()))
        if device["candidates"]:
            console.print(grid)
        if device["baseline"] and device["baseline"].get("note"):
            console.print(Text(f"  baseline: {device['baseline']['note']}"))
        for failure in device["failures"]:
            console.print(Text(f"  failed: {_failure_line(failure)}"))
        deployment = device["deployment"]
        if deployment:
            where = deployment["path"] or deployment["reason"] or ""
            console.print(Text(f"  deployment: generation {deployment['generation']} {deployment['state']}  {where}"))
    for note in report["notes"]:
        console.print(Text(f"note: {note}"))
    phases = "  ".join(f"{name} {seconds:.1f} s" for name, seconds in report["phases_s"].items())
    console.print(Text(f"\n* winner, = baseline, ~ one screening launch.  {phases}"))
    console.print(Text(f"{report['run']}: {report['summary']}"))
    stream = console.file
    assert isinstance(stream, io.StringIO)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).lstrip("\n") + "\n"


def _verdict_line(device: Mapping[str, Any]) -> str:
    winner = device["winner"]
    if winner is None:
        return f"no winner: {device['reason']}"
    speedup = winner["speedup_vs_baseline"]
    if winner == device["baseline"]:
        return f"the baseline stays: {device['reason']}"
    return f"{winner['variant']}, {speedup['ratio']:.2f}x the baseline's speed" if speedup else winner["variant"]


def as_csv(report: Report) -> str:
    """One line per device and candidate; empty = unknown."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _CSV_COLUMNS.split(), lineterminator="\n")
    writer.writeheader()
    for device, candidate in _candidates(report):
        latency, speedup = candidate["latency_ns"] or {}, candidate["speedup_vs_baseline"] or {}
        low, high = speedup.get("ci95") or (None, None)
        writer.writerow({
            "run": report["run"], "device": device["name"], "class": device["class"], "variant": candidate["variant"],
            "runtime": candidate["runtime"], "threads": candidate["options"].get("threads"), "winner": candidate == device["winner"],
            "feasible": candidate["feasible"], "pareto": candidate["pareto"], "rejected": candidate["rejected"],
            **{f"{p}_ns": (latency.get(p) or {}).get("value") for p in ("p50", "p90", "p99")},
            "speedup": speedup.get("ratio"), "speedup_low": low, "speedup_high": high,
            "accuracy": (candidate["accuracy"] or {}).get("value"), "accuracy_n": (candidate["accuracy"] or {}).get("n"),
            "bytes": candidate["artifact"]["bytes"], "peak_rss_bytes": (candidate["memory"] or {}).get("peak_rss_bytes"),
            "verdict": candidate["verdict"], "format": candidate["artifact"]["format"], "options": json.dumps(candidate["options"]),
            "emulated": device["emulated"],
        })  # fmt: skip
    return stream.getvalue()


def _candidates(report: Report) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    for device in report["devices"]:
        for candidate in device["candidates"]:
            yield device, candidate


def as_junit(report: Report) -> str:
    """One test case per device: it fails without a winner."""
    suite = ElementTree.Element("testsuite", name=report["run"], tests=str(len(report["devices"])))
    failed = 0
    for device in report["devices"]:
        case = ElementTree.SubElement(suite, "testcase", classname=report["run"], name=device["name"])
        if device["winner"] is None:
            failed += 1
            ElementTree.SubElement(case, "failure", message=device["reason"])
        ElementTree.SubElement(case, "system-out").text = "\n".join(filter(None, (_verdict_line(device), device.get("caveat"))))
    suite.set("failures", str(failed))
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}td,th{padding:.3rem .6rem;text-align:left;vertical-align:top}
th{font-weight:600;border-bottom:2px solid #d0d7de}td{border-bottom:1px solid #eaeef2}
td:not(:last-child){white-space:nowrap}
tr.winner{background:#e6f4ea}tr.baseline{background:#f6f8fa}
.bar{background:#1a7f37;height:.5rem;border-radius:2px}small{color:#57606a}
"""


def as_html(report: Report) -> str:
    """One self-contained page, without scripts."""
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{_e(report['run'])}</title><style>{_STYLE}</style>"]
    parts.append(f"<h1>{_e(report['run'])}</h1><p>{_e(report['summary'])}</p>")
    for device in report["devices"]:
        parts.append(f"<h2>{_e(device['name'])}</h2><p>{_e(_verdict_line(device))}</p>")
        if device.get("caveat"):
            parts.append(f"<p><strong>{_e(device['caveat'])}</strong></p>")
        parts.append("<table><tr>")
        parts += [f"<th>{_e(c)}</th>" for c in (*_COLUMNS[1:-1], "relative latency", _COLUMNS[-1])]
        parts.append("</tr>")
        parts += [_html_row(device, candidate) for candidate in _order(device)]
        parts.append("</table>")
        if device["baseline"] and device["baseline"].get("note"):
            parts.append(f"<p><small>baseline: {_e(device['baseline']['note'])}</small></p>")
        parts += [f"<p><small>failed: {_e(_failure_line(f))}</small></p>" for f in device["failures"]]
        if device["deployment"]:
            parts.append(f"<p>Deployed: {_e(device['deployment']['path'] or device['deployment']['state'])}</p>")
    parts.append(f"<p><small>edgefarm {_e(report['edgefarm_version'])}, {_e(report['started'] or '')}</small></p></html>")
    return "".join(parts) + "\n"


def _failure_line(failure: Mapping[str, Any]) -> str:
    return f"{failure['variant']} ({failure['stage']}, {failure['kind']}): {_one_line(failure['detail'])}"


def _one_line(text: str) -> str:
    """For people; libraries' messages may be pages long. The JSON form has all of it."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…"


def _html_row(device: Mapping[str, Any], candidate: Mapping[str, Any]) -> str:
    kind = "winner" if candidate == device["winner"] else "baseline" if candidate == device["baseline"] else ""
    *values, why = _row(candidate).values()
    speedup, screening = candidate["speedup_vs_baseline"], candidate["screening"]
    ratio = speedup["ratio"] if speedup else screening["speedup"] if screening else None
    width = f"{min(100.0, 100 / ratio):.0f}%" if ratio else "0"
    cells = "".join(f"<td>{_e(v)}</td>" for v in values)
    return f"<tr class='{kind}'>{cells}<td style='width:10rem'><div class=bar style='width:{width}'></div></td><td>{_e(why)}</td></tr>"


def _e(text: str) -> str:
    return html.escape(str(text))


FORMS: dict[str, Callable[[Report], str]] = {"table": table, "json": as_json, "html": as_html, "csv": as_csv, "junit": as_junit}
