"""Forms of a report: table, json, csv, html, junit."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table
from rich.text import Text

from controller.report import rows
from controller.report.page import as_html
from controller.report.rows import Report

_CSV_COLUMNS = """run device class variant runtime threads winner feasible pareto rejected p50_ns p90_ns p99_ns speedup speedup_low
speedup_high accuracy accuracy_n bytes peak_rss_bytes verdict format options emulated n launches p50_low_ns p50_high_ns scenario
throughput_per_s best_batch energy_uj energy_low_uj energy_high_uj energy_source others_cpu throttled fallback_nodes accuracy_split"""
_WIDTH = 170  # where nothing says how wide the reader's screen is


def render(report: Report, form: str, width: int | None = None) -> str:
    """The report as text in one of FORMS."""
    if form == "table":
        return table(report, width)
    return FORMS[form](report)


def as_json(report: Report) -> str:
    """One JSON document."""
    return json.dumps(report, indent=2, allow_nan=False)


def table(report: Report, width: int | None = None) -> str:
    """For people."""
    console = Console(file=io.StringIO(), width=width or _WIDTH, force_terminal=False, highlight=False)
    for device in report["devices"]:
        console.print(Text(f"\n{device['name']}: {rows.verdict_line(device)}", style="bold"))
        if device.get("caveat"):
            console.print(Text(f"  {device['caveat']}"))
        if device["candidates"]:
            console.print(_grid(device))
        for note in rows.notes(device):
            console.print(Text(f"  {note}"))
        deployment = device["deployment"]
        if deployment:
            where = deployment["path"] or deployment["reason"] or ""
            console.print(Text(f"  deployment: generation {deployment['generation']} {deployment['state']}  {where}"))
    for note in report["notes"]:
        console.print(Text(f"note: {note}"))
    phases = "  ".join(f"{name} {seconds:.1f} s" for name, seconds in report["phases_s"].items())
    console.print(
        Text(f"\n* winner, = baseline, ~ one screening launch, which only ranks, (accuracy) on the samples that choose.  {phases}")
    )
    console.print(Text(f"{report['run']}: {report['summary']}"))
    stream = console.file
    assert isinstance(stream, io.StringIO)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).lstrip("\n") + "\n"


def _grid(device: Mapping[str, Any]) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", *rows.columns(device)):
        grid.add_column(column, overflow="fold", justify="right" if column.split(" ")[-1] in rows.NUMBERS else "left")
    for candidate in rows.order(device):
        mark = "*" if candidate == device["winner"] else "=" if candidate == device["baseline"] else ""
        grid.add_row(mark, *(Text(value) for value in rows.row(device, candidate).values()))
    return grid


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
            "accuracy_split": (candidate["accuracy"] or {}).get("split"),
            "bytes": candidate["artifact"]["bytes"], "peak_rss_bytes": (candidate["memory"] or {}).get("peak_rss_bytes"),
            "verdict": candidate["verdict"], "format": candidate["artifact"]["format"], "options": json.dumps(candidate["options"]),
            "emulated": device["emulated"], **_trust(candidate),
        })  # fmt: skip
    return stream.getvalue()


def _trust(candidate: Mapping[str, Any]) -> dict[str, Any]:
    """What says how far the numbers go, and the numbers of scenarios, energy and placement."""
    latency, energy, known = candidate["latency_ns"] or {}, candidate["energy"] or {}, candidate["conditions"]
    p50_low, p50_high = (latency.get("p50") or {}).get("ci95") or (None, None)
    energy_low, energy_high = energy.get("ci95") or (None, None)
    throughput = candidate.get("throughput") or {}
    return {
        "n": latency.get("n"), "launches": latency.get("launches"), "p50_low_ns": p50_low, "p50_high_ns": p50_high,
        "scenario": candidate["scenario"]["kind"], "throughput_per_s": throughput.get("per_s"), "best_batch": throughput.get("best_batch"),
        "energy_uj": energy.get("per_inference_uj"), "energy_low_uj": energy_low, "energy_high_uj": energy_high,
        "energy_source": energy.get("source"), "others_cpu": known.get("others_cpu"), "throttled": " ".join(known.get("throttled", ())),
        "fallback_nodes": (candidate.get("fallback") or {}).get("nodes"),
    }  # fmt: skip


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
        if device["winner"] is None and not device.get("measured_only"):
            failed += 1
            ElementTree.SubElement(case, "failure", message=device["reason"])
        said = (rows.verdict_line(device), device.get("caveat"), rows.conditions_line(device))
        ElementTree.SubElement(case, "system-out").text = "\n".join(filter(None, said))
    suite.set("failures", str(failed))
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


FORMS: dict[str, Callable[[Report], str]] = {"table": table, "json": as_json, "html": as_html, "csv": as_csv, "junit": as_junit}
