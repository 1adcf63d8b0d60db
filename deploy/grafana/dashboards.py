"""Writes the dashboards: `python deploy/grafana/dashboards.py [FOLDER]`.

A dashboard is rows of panels, a panel its expressions; places, ids and Grafana's form follow from that
(https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = {"type": "prometheus", "uid": "edgefarm"}
HEIGHT, WIDTH = 8, 24
D = 'device=~"$device"'
EMULATED = "(edgefarm_device_emulated == 1)"


@dataclass(frozen=True)
class Panel:
    """A title and what it shows: (expression, legend). `kind`: timeseries, stat or table; `unit`: one of Grafana's."""

    title: str
    shown: Sequence[tuple[str, str]]
    unit: str = "none"
    kind: str = "timeseries"
    text: str = ""
    value: bool = True  # whether a table shows the number, or it is 1 anyhow
    red_from: float | None = None
    green_from: float | None = None


@dataclass(frozen=True)
class Dashboard:
    """Rows of panels that share the width. `choose`: whether one picks devices."""

    uid: str
    title: str
    rows: Sequence[Sequence[Panel]]
    choose: bool = False


FLEET = Dashboard(
    "edgefarm-fleet",
    "edgefarm: fleet",
    [
        [
            Panel("Devices attached", [("sum(edgefarm_device_up)", "attached")], kind="stat"),
            Panel("Devices lost", [("count(edgefarm_device_up == 0) or vector(0)", "lost")], kind="stat", red_from=1),
            Panel("Orders waiting", [('edgefarm_controller_orders{state="queued"}', "queued")], kind="stat"),
            Panel("Deployments failed", [('edgefarm_controller_deployments{state="failed"}', "failed")], kind="stat", red_from=1),
            Panel("Alerts", [('count(ALERTS{alertstate="firing"}) or vector(0)', "firing")], kind="stat", red_from=1),
        ],
        [
            Panel("Devices by state", [("edgefarm_controller_devices", "{{state}}")]),
            Panel("Queue", [('edgefarm_controller_orders{state=~"queued|sent"}', "{{state}}")], text="Orders that wait, and that run."),
            Panel("Runs", [("edgefarm_controller_runs", "{{state}}")]),
        ],
        [
            Panel(
                "What runs where",
                [("group by (device, model, variant, runtime, generation) (edgefarm_deployment_info)", "")],
                kind="table",
                value=False,
            ),
            Panel("Accuracy of winners", [("edgefarm_model_metric", "")], kind="table"),
        ],
        [
            Panel("Trials that ended", [("sum by (outcome) (increase(edgefarm_trials_total[$__rate_interval]))", "{{outcome}}")]),
            Panel("Throttling", [("device:edgefarm_throttled:max", "{{device}}")], text="1 while a device throttles for any reason."),
            Panel("Hottest zone", [("max by (device) (edgefarm_temperature_celsius)", "{{device}}")], "celsius"),
        ],
        [
            Panel("Disk free", [("device:edgefarm_disk_free:ratio", "{{device}}")], "percentunit"),
            Panel("Agents' memory", [("edgefarm_agent_memory_bytes", "{{device}}")], "bytes"),
            Panel(
                "Bytes moved by the controller",
                [("rate(edgefarm_controller_transfer_bytes_total[$__rate_interval])", "{{direction}}")],
                "Bps",
            ),
        ],
        [
            Panel("Sessions begun", [("increase(edgefarm_controller_sessions_total[$__rate_interval])", "sessions")]),
            Panel("Age of telemetry", [("time() - edgefarm_telemetry_timestamp_seconds", "{{device}}")], "s"),
            Panel(
                "Certificates end in",
                [
                    ("edgefarm_certificate_expiry_timestamp_seconds - time()", "{{device}}"),
                    ("edgefarm_controller_certificate_expiry_timestamp_seconds - time()", "controller {{certificate}}"),
                ],
                "s",
            ),
        ],
    ],
)

DEVICE = Dashboard(
    "edgefarm-device",
    "edgefarm: device",
    [
        [
            Panel("Attached", [(f"edgefarm_device_up{{{D}}}", "{{device}}")], kind="stat", green_from=1),
            Panel("Agent", [(f"edgefarm_build_info{{{D}}}", "{{device}} {{version}}")], kind="stat"),
            Panel("Disk free", [(f"edgefarm_disk_free_bytes{{{D}}}", "{{device}}")], "bytes", "stat"),
            Panel("Battery", [(f"edgefarm_battery_charge_ratio{{{D}}}", "{{device}} {{battery}}")], "percentunit", "stat"),
            Panel("Emulated", [(f"edgefarm_device_emulated{{{D}}}", "{{device}}")], kind="stat", red_from=1),
        ],
        [
            Panel("What runs", [(f"edgefarm_deployment_info{{{D}}}", "")], kind="table", value=False),
            Panel("What can't be read", [(f"edgefarm_collector_success{{{D}}} == 0", "")], kind="table", value=False),
        ],
        [
            Panel(
                "Live latency",
                [
                    (f"deployment:edgefarm_inference_latency_seconds:p50_5m{{{D}}}", "{{device}} {{model}} {{variant}} p50"),
                    (f"deployment:edgefarm_inference_latency_seconds:p99_5m{{{D}}}", "{{device}} {{model}} {{variant}} p99"),
                ],
                "s",
                text="Of programs that serve a model.",
            ),
            Panel(
                "Latency in trials",
                [
                    (f"edgefarm_trial_latency_seconds{{{D}}} unless on (device) {EMULATED}", "{{device}} {{model}} {{stat}}"),
                    (f"edgefarm_trial_latency_seconds{{{D}}} and on (device) {EMULATED}", "{{device}} (emulated) {{model}} {{stat}}"),
                ],
                "s",
                text="Of the contender measured last, which need not be the one that runs. Under emulation it is no device's latency.",
            ),
            Panel("Memory in trials", [(f"edgefarm_trial_memory_bytes{{{D}}}", "{{device}} {{model}}")], "bytes"),
        ],
        [
            Panel("Temperature", [(f"edgefarm_temperature_celsius{{{D}}}", "{{device}} {{zone}}")], "celsius"),
            Panel("Frequency", [(f"edgefarm_cpu_frequency_hertz{{{D}}}", "{{device}} cpu {{cpu}}")], "hertz"),
            Panel(
                "Throttling",
                [
                    (f"edgefarm_throttled{{{D}}}", "{{device}} {{reason}}"),
                    (f"increase(edgefarm_throttle_events_total{{{D}}}[$__rate_interval])", "{{device}} {{source}}"),
                ],
            ),
        ],
        [
            Panel(
                "CPUs busy",
                [
                    (f"rate(edgefarm_cpu_busy_seconds_total{{{D}}}[$__rate_interval])", "{{device}} busy"),
                    (f"rate(edgefarm_cpu_steal_seconds_total{{{D}}}[$__rate_interval])", "{{device}} stolen"),
                    (f"edgefarm_load1{{{D}}}", "{{device}} load"),
                ],
            ),
            Panel("Memory available", [(f"device:edgefarm_memory_available:ratio{{{D}}}", "{{device}}")], "percentunit"),
            Panel("Agent's memory", [(f"edgefarm_agent_memory_bytes{{{D}}}", "{{device}}")], "bytes"),
        ],
        [
            Panel("Trials", [(f"increase(edgefarm_trials_total{{{D}}}[$__rate_interval])", "{{device}} {{outcome}}")]),
            Panel(
                "Bytes moved",
                [(f"rate(edgefarm_artifact_transfer_bytes_total{{{D}}}[$__rate_interval])", "{{device}} {{direction}}")],
                "Bps",
            ),
            Panel("Went back", [(f"increase(edgefarm_deployment_rollbacks_total{{{D}}}[1h])", "{{device}} {{reason}}")]),
        ],
    ],
    choose=True,
)
DASHBOARDS = (FLEET, DEVICE)


def documents() -> dict[str, str]:
    """File name -> content."""
    return {f"{d.uid.removeprefix('edgefarm-')}.json": json.dumps(_document(d), indent=1) + "\n" for d in DASHBOARDS}


def expressions() -> list[str]:
    """Every expression of every panel, as Grafana keeps it."""
    return [expression for d in DASHBOARDS for row in d.rows for panel in row for expression, _ in panel.shown]


def _document(dashboard: Dashboard) -> dict[str, Any]:
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["edgefarm"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [_choice()] if dashboard.choose else []},
        "links": [{"type": "dashboards", "tags": ["edgefarm"], "title": "edgefarm", "keepTime": True}],
        "panels": list(_panels(dashboard)),
    }


def _choice() -> dict[str, Any]:
    query = "label_values(edgefarm_device_up, device)"
    return {
        "type": "query", "name": "device", "label": "device", "datasource": SOURCE, "definition": query,
        "query": {"query": query, "refId": "device"}, "refresh": 2, "sort": 1, "multi": True, "includeAll": True,
    }  # fmt: skip


def _panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    number = top = 0
    for row in dashboard.rows:
        height = HEIGHT // 2 if all(p.kind == "stat" for p in row) else HEIGHT
        for place, panel in enumerate(row):
            number += 1
            left, right = (WIDTH * edge // len(row) for edge in (place, place + 1))
            yield {"id": number, "gridPos": {"x": left, "y": top, "w": right - left, "h": height}, **_panel(panel)}
        top += height


def _panel(panel: Panel) -> dict[str, Any]:
    table = panel.kind == "table"
    targets = [
        {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
        | ({"format": "table", "instant": True} if table else {"instant": panel.kind == "stat"})
        for index, (expression, legend) in enumerate(panel.shown)
    ]
    document: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, **_colours(panel)}, "overrides": []},
    }
    if table:
        hidden = dict.fromkeys(["Time", "__name__", "instance", "job", *([] if panel.value else ["Value"])], True)
        document["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return document


def _colours(panel: Panel) -> dict[str, Any]:
    if panel.red_from is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.red_from}]
    elif panel.green_from is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.green_from}]
    else:
        return {}
    return {"thresholds": {"mode": "absolute", "steps": steps}}


def main(folder: Path) -> None:
    for name, content in documents().items():
        (folder / name).write_text(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "dashboards")
