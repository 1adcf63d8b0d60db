"""What is shipped to watch a farm: dashboards, rules, compose file. A real Prometheus evaluates them in the integration tests."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.metrics import CONTROLLER_METRICS
from edgefarm.metrics import DEVICE_METRICS

DEPLOY = Path(__file__).parents[2] / "deploy"
GENERATOR: dict[str, Any] = runpy.run_path(str(DEPLOY / "grafana" / "dashboards.py"))
# Of programs that serve a model.
LIVE = {"edgefarm_inference_latency_seconds_bucket", "edgefarm_inference_requests_total"}
# Of a service in a compose file, those that are used here and documented.
KEYS = {"build", "cap_drop", "command", "depends_on", "environment", "healthcheck", "image", "network_mode", "ports", "read_only",
        "restart", "security_opt", "stop_grace_period", "stop_signal", "tmpfs", "volumes"}  # fmt: skip


def rules(kind: str) -> dict[str, str]:
    """Name -> expression of every rule of a kind (alert, record)."""
    files = [yaml.safe_load(path.read_text()) for path in sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))]
    return {r[kind]: r["expr"] for file in files for group in file["groups"] for r in group["rules"] if kind in r}


def test_the_dashboards_are_what_their_script_writes(tmp_path: Path) -> None:
    GENERATOR["main"](tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    shipped = {path.name: path.read_text() for path in (DEPLOY / "grafana" / "dashboards").iterdir()}
    assert written == shipped, "run: python deploy/grafana/dashboards.py"


@pytest.mark.parametrize("name", ["fleet.json", "device.json"])
def test_panels_fill_their_rows_and_overlap_nowhere(name: str) -> None:
    document = json.loads(GENERATOR["documents"]()[name])
    places = [panel["gridPos"] for panel in document["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells)) == 24 * max(p["y"] + p["h"] for p in places)
    assert [panel["id"] for panel in document["panels"]] == list(range(1, len(places) + 1))
    (source,) = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert {t["datasource"]["uid"] for panel in document["panels"] for t in panel["targets"]} == {source["uid"]}


def test_rules_and_panels_name_only_metrics_that_exist() -> None:
    known = {*DEVICE_METRICS, *CONTROLLER_METRICS, *rules("record"), *LIVE}
    for expression in [*rules("alert").values(), *rules("record").values(), *GENERATOR["expressions"]()]:
        named = set(re.findall(r"(?:\w+:)?edgefarm_\w+(?::\w+)?", expression))
        assert named or "up{" in expression or "ALERTS" in expression, expression
        assert named <= known, expression


def test_every_alert_is_seen_firing_and_quiet() -> None:
    tests = yaml.safe_load((DEPLOY / "prometheus" / "tests" / "alerts.yml").read_text())["tests"]
    firing: set[str] = set()
    for test in tests:
        fires = {a for e in test["promql_expr_test"] for s in e["exp_samples"] for a in re.findall(r'alertname="(\w+)"', s["labels"])}
        assert not fires & firing
        firing |= fires
        about = " ".join(s["series"] for s in test["input_series"])
        quiet = 'device="good"' in about or any(
            [s["series"] for s in other["input_series"]] == [s["series"] for s in test["input_series"]] and other is not test
            for other in tests
        )
        assert quiet, test["name"]
    assert firing == set(rules("alert"))


def test_the_compose_file_names_files_that_exist_and_opens_little() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    build = services["controller"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
    assert {name for name, service in services.items() if "ports" in service} == {"network"}
    assert {service.get("network_mode") for name, service in services.items() if name != "network"} == {"service:network"}
    assert [p for p in services["network"]["ports"] if not p.startswith("127.0.0.1:")] == ["7443:7443", "7444:7444"]
    keys = {key for service in services.values() for key in service}
    assert keys <= KEYS, "https://docs.docker.com/reference/compose-file/services/"
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    kept = set(re.findall(r"^!(.+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE))
    assert {name for line in copied for name in line.split()} == kept
    assert all((DEPLOY.parent / name).exists() for name in kept)


def test_all_parts_mean_the_same_addresses() -> None:
    command = re.search(r"^CMD (.+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert command is not None
    address = json.loads(command[1])[-1]
    scrapes = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert scrapes[0]["static_configs"] == [{"targets": [address]}]
    assert scrapes[1]["http_sd_configs"][0]["url"] == f"http://{address}/discovery"
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert f"http://{address}/metrics" in services["controller"]["healthcheck"]["test"][-1]
    (source,) = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert f"--web.listen-address={source['url'].removeprefix('http://')}" in services["prometheus"]["command"]
