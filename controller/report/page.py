"""The report as one self-contained HTML page, without scripts."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from controller.report import rows
from controller.report.rows import Report

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}td,th{padding:.3rem .6rem;text-align:left;vertical-align:top}
th{font-weight:600;border-bottom:2px solid #d0d7de}td{border-bottom:1px solid #eaeef2}
td:not(:last-child){white-space:nowrap}
tr.winner{background:#e6f4ea}tr.baseline{background:#f6f8fa}
.stable{color:#1a7f37}.noisy,.throttled,.interfered,.unsteady{color:#bc4c00;font-weight:600}.screened{color:#57606a}
.bar{background:#1a7f37;height:.5rem;border-radius:2px}small{color:#57606a}
"""


def as_html(report: Report) -> str:
    """One page."""
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{_e(report['run'])}</title><style>{_STYLE}</style>"]
    parts.append(f"<h1>{_e(report['run'])}</h1><p>{_e(report['summary'])}</p>")
    for device in report["devices"]:
        parts.append(f"<h2>{_e(device['name'])}</h2><p>{_e(rows.verdict_line(device))}</p>")
        if device.get("caveat"):
            parts.append(f"<p><strong>{_e(device['caveat'])}</strong></p>")
        if device["candidates"]:
            parts.append(_table(device))
        parts += [f"<p><small>{_e(note)}</small></p>" for note in rows.notes(device)]
        if device["deployment"]:
            parts.append(f"<p>Deployed: {_e(device['deployment']['path'] or device['deployment']['state'])}</p>")
    parts.append(f"<p><small>edgefarm {_e(report['edgefarm_version'])}, {_e(report['started'] or '')}</small></p></html>")
    return "".join(parts) + "\n"


def _table(device: Mapping[str, Any]) -> str:
    *names, last = rows.columns(device)
    head = "".join(f"<th>{_e(c)}</th>" for c in (*names, "relative latency", last))
    body = "".join(_row(device, candidate) for candidate in rows.order(device))
    return f"<table><tr>{head}</tr>{body}</table>"


def _row(device: Mapping[str, Any], candidate: Mapping[str, Any]) -> str:
    kind = "winner" if candidate == device["winner"] else "baseline" if candidate == device["baseline"] else ""
    shown = rows.row(device, candidate)
    why = shown.pop("why not")
    speedup, screening = candidate["speedup_vs_baseline"], candidate["screening"]
    ratio = speedup["ratio"] if speedup else screening["speedup"] if screening else None
    width = f"{min(100.0, 100 / ratio):.0f}%" if ratio else "0"
    cells = "".join(_cell(name, value, candidate) for name, value in shown.items())
    return f"<tr class='{kind}'>{cells}<td style='width:10rem'><div class=bar style='width:{width}'></div></td><td>{_e(why)}</td></tr>"


def _cell(name: str, value: str, candidate: Mapping[str, Any]) -> str:
    if name != "verdict":
        return f"<td>{_e(value)}</td>"
    return f"<td class='{_e(value)}' title='{_e(rows.one_line(candidate.get('verdict_detail') or ''))}'>{_e(value)}</td>"


def _e(text: str) -> str:
    return html.escape(str(text))
