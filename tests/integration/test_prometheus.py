"""A real Prometheus looks at a real controller with real agents, through the configuration, rules and dashboards that are shipped."""

from __future__ import annotations

import contextlib
import json
import runpy
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from controller.artifacts import ArtifactStore
from controller.farm import Farm
from controller.local_agents import LocalAgents, LocalDevice
from controller.login import write_pem
from controller.metrics import CONTROLLER_METRICS, Listener
from controller.server import RuntimeFolder, Server
from controller.store import SqlStore
from edgefarm.digest import digest_file
from edgefarm.enrolment import enroll
from edgefarm.metrics import DEVICE_METRICS
from edgefarm.model import (
    Artifact,
    Candidate,
    Contender,
    Deployment,
    DeploymentState,
    Family,
    FileEntry,
    Golden,
    LatencyWork,
    MemoryWork,
    Order,
    OrderState,
    Scenario,
    Series,
    Telemetry,
    Welcome,
)
from edgefarm.tensors import pack
from tests.fakes.agent import FakeAgent
from tests.fakes.orders import a_device, a_hello
from tests.integration.prometheus_process import Prometheus, needs
from tests.integration.serving import EnrolledAgent, enrolled, join_address, serving, settings

pytestmark = needs("prometheus", "promtool")

DEPLOY = Path(__file__).parents[2] / "deploy"
MODEL = Path(__file__).parents[2] / "agent" / "runtimes" / "probe.onnx"  # x: float32[2, 2] -> y = x @ x + 1
X = np.arange(4, dtype=np.float32).reshape(2, 2)
NAMES = ("relayed", "direct", "fragile")
DASHBOARDS: dict[str, Any] = runpy.run_path(str(DEPLOY / "grafana" / "dashboards.py"))
# What no device of this version has: a program that serves a model.
WITHOUT_DATA = ("deployment:edgefarm_inference_latency_seconds:p50_5m", "deployment:edgefarm_inference_latency_seconds:p99_5m")


class Looked:
    """A farm with two real devices and a fake one, the pages, and Prometheus."""

    def __init__(self, farm: Farm, listener: Listener, prometheus: Prometheus, agents: LocalAgents, fragile: FakeAgent) -> None:
        self.farm, self.listener, self.prometheus, self.agents, self.fragile = farm, listener, prometheus, agents, fragile

    def page(self, url: str) -> str:
        with urllib.request.urlopen(url, timeout=20) as reply:
            return str(reply.read().decode())


@pytest.fixture
def looked(tmp_path: Path) -> Iterator[Looked]:
    with contextlib.ExitStack() as held:
        store = SqlStore(tmp_path / "store.db")
        held.callback(store.close)
        farm = Farm(store, ArtifactStore(tmp_path / "artifacts"), heartbeat_s=60.0, telemetry_s=0.5)
        folder = RuntimeFolder()
        held.callback(folder.close)
        server = Server(farm, folder.address)
        held.callback(server.stop)
        devices = [
            LocalDevice("relayed", ("onnxruntime",), 1),
            LocalDevice("direct", ("onnxruntime",), 1, {"metrics": "direct"}, "127.0.0.1:0"),
        ]
        agents = LocalAgents(farm, server.start(), tmp_path / "devices", devices)
        held.callback(agents.stop)
        agents.start()
        fragile = held.enter_context(FakeAgent(server.address, "fragile", farm.doorkeeper.invite("fragile")))
        fragile.attach(a_hello(a_device("fragile")))
        fragile.wait(Welcome)
        assert farm.wait_for_devices(NAMES, 120) == []
        listener = Listener(farm, "127.0.0.1:0", expiries=lambda: {"authority": 4e9})
        held.callback(listener.stop)
        listener.start()
        prometheus = held.enter_context(Prometheus(configured(tmp_path / "prometheus", listener.url), tmp_path / "data"))
        yield Looked(farm, listener, prometheus, agents, fragile)


def configured(folder: Path, url: str) -> Path:
    """The shipped configuration, with the pages of this test and a second instead of a quarter of a minute."""
    shutil.copytree(DEPLOY / "prometheus", folder)
    path = folder / "prometheus.yml"
    text = path.read_text()
    assert "127.0.0.1:7480" in text
    path.write_text(text.replace("127.0.0.1:7480", url.removeprefix("http://")).replace("15s", "1s"))
    return path


def work(farm: Farm) -> None:
    """The relayed device measures and both run a model; a run that has ended says how accurate it is."""
    run = farm.open_run("c", "spec", "{}", "me", {})
    winner = {"accuracy": {"metric": "top1", "value": 0.9}}
    report = {"model": {"name": "net"}, "devices": [{"name": "relayed", "winner": winner}, {"name": "lost", "winner": None}]}
    digest, size = digest_file(MODEL), MODEL.stat().st_size
    candidate = Candidate(Artifact(digest, size, "onnx", (FileEntry("net.onnx", digest, size),)), "onnxruntime", {"threads": 1})
    contender = Contender(candidate.key, candidate)
    farm.put(MODEL)
    inputs = farm.put(pack({"x": [X, X + 1]}))
    golden = Golden(farm.put(pack({"input:x": [X], "output:y": [X @ X + 1]})), 1e-3, 1e-3)
    latency = LatencyWork((contender,), Scenario(), inputs, (0,), bursts=2, burst_ns=1_000_000, warmup_ns=1_000_000)
    memory = MemoryWork(contender, inputs, 2)
    farm.submit([Order(kind, run.name, "net", "", wanted, "relayed") for kind, wanted in (("l", latency), ("m", memory))])
    ordered = farm.deploy([Deployment("", name, "net", 0, "source", candidate, golden=golden) for name in ("relayed", "direct")])
    done = farm.wait_for_deployments([s.id for s in ordered], 120)
    assert {s.state for s in done} == {DeploymentState.COMMITTED}, done
    progress = farm.progress(run.name)
    while any(o.state is not OrderState.DONE for o in progress.orders):
        progress = farm.progress(run.name, since=progress.revision, wait_s=120)
    farm.update_run(replace(run, state="done", exit_code=0, report=json.dumps(report)))


def everything() -> Telemetry:
    """Every family that a device can tell, as one that has every sensor would."""
    return Telemetry(tuple(Family(n, (Series(dict.fromkeys(m.labels, "a"), 1.0),)) for n, m in DEVICE_METRICS.items()))


def test_every_device_is_seen_once_and_a_lost_one_only_as_lost(looked: Looked) -> None:
    prometheus = looked.prometheus
    looked.fragile.say(everything())
    work(looked.farm)
    prometheus.wait(lambda: {m["device"] for m, _ in prometheus.query("edgefarm_deployment_info")} == set(NAMES), "what runs")
    once = 'count by (__name__, device) ({__name__=~"edgefarm_.+", device!="", job="%s"})'
    relayed = {(m["__name__"], m["device"]) for m, _ in prometheus.query(once % "edgefarm-controller")}
    direct = {(m["__name__"], m["device"]) for m, _ in prometheus.query(once % "edgefarm-devices")}
    assert not relayed & direct
    assert {device for _, device in relayed} == {"relayed", "fragile"}
    assert {device for _, device in direct} == {"direct"}
    assert prometheus.query('{exported_device!=""}') == []
    assert {m["device"]: v for m, v in prometheus.query("edgefarm_device_up")} == dict.fromkeys(NAMES, 1.0)
    of_fragile = {m["__name__"] for m, _ in prometheus.query('{device="fragile", __name__=~"edgefarm_.+"}')}
    assert of_fragile == {*DEVICE_METRICS, "edgefarm_telemetry_timestamp_seconds"}
    assert {name for name, _ in direct} <= set(DEVICE_METRICS)

    looked.fragile.hang_up()
    looked.agents.stop()
    pages = '{__name__=~"edgefarm_.+|up", device!=""}'
    lost = {(name, "edgefarm_device_up", "edgefarm-controller"): 0.0 for name in NAMES}

    def left() -> dict[tuple[str, str, str], float]:
        return {(m["device"], m["__name__"], m["job"]): v for m, v in prometheus.query(pages)}

    prometheus.wait(lambda: left() == lost, "series of lost devices to vanish", left)
    prometheus.wait(lambda: len(prometheus.query('ALERTS{alertname="EdgefarmDeviceDown"}')) == len(NAMES), "the alert")


def test_dashboards_and_rules_can_be_evaluated(looked: Looked) -> None:
    prometheus = looked.prometheus
    looked.fragile.say(everything())
    work(looked.farm)
    asked = {e: e.replace("$device", ".*").replace("$__rate_interval", "20s") for e in DASHBOARDS["expressions"]()}
    expected = {e for e in asked if e.startswith(WITHOUT_DATA)}
    assert len(expected) == len(WITHOUT_DATA)

    def empty() -> set[str]:
        return {kept for kept, expression in asked.items() if not prometheus.query(expression)}

    prometheus.wait(lambda: empty() == expected, "data for every panel")
    groups = prometheus.api("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    files = [yaml.safe_load(path.read_text()) for path in (DEPLOY / "prometheus" / "rules").glob("*.yml")]
    shipped = [rule for file in files for group in file["groups"] for rule in group["rules"]]
    assert len(rules) == len(shipped)
    prometheus.wait(lambda: all(r["health"] == "ok" for g in prometheus.api("rules")["groups"] for r in g["rules"]), "rules")


def test_the_pages_are_as_prometheus_wants_them(looked: Looked) -> None:
    looked.fragile.say(everything())
    work(looked.farm)
    (direct,) = [s.device for s in looked.farm.devices() if s.device.name == "direct"]
    pages = {url: looked.page(url) for url in (f"{looked.listener.url}/metrics", direct.metrics_address)}
    for url, page in pages.items():
        checked = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, timeout=60)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, ""), url
    own = pages[f"{looked.listener.url}/metrics"]
    for name in CONTROLLER_METRICS:
        assert f"# TYPE {name.removesuffix('_total')}" in own
    lines = dict(line.rsplit(" ", 1) for line in own.splitlines() if not line.startswith("#"))
    assert float(lines['edgefarm_controller_orders{state="done"}']) == 2
    assert float(lines['edgefarm_controller_runs{state="done"}']) == 1
    assert float(lines['edgefarm_controller_deployments{state="committed"}']) == 2
    assert float(lines["edgefarm_controller_sessions_total"]) == 3
    assert float(lines['edgefarm_controller_transfer_bytes_total{direction="fetch"}']) > 2 * MODEL.stat().st_size
    assert float(lines['edgefarm_model_metric{device="relayed",metric="top1",model="net"}']) == 0.9


def test_pages_off_loopback_are_read_with_a_users_certificate(tmp_path: Path) -> None:
    address = "0.0.0.0:0"
    with serving(tmp_path / "state", settings(metrics=address)) as controller:
        enrolled(controller, tmp_path / "pi" / "identity", "pi")
        controller.registry.label("pi", {"metrics": "direct"})
        token = controller.registry.add_user("prometheus", "viewer")
        write_pem(enroll(join_address(controller), token, "", tmp_path / "user", "user"), tmp_path)
        with EnrolledAgent(tmp_path / "pi", arguments=("--metrics", address)) as agent:
            assert controller.farm.wait_for_devices(["pi"], 120) == [], agent.output
            assert controller.metrics is not None
            (status,) = controller.farm.devices()
            assert status.device.metrics_address.startswith("https://")
            files = {f"{k}_file": str(tmp_path / f"{v}.pem") for k, v in (("ca", "authority"), ("cert", "certificate"), ("key", "key"))}
            jobs = [
                (name, url.split("//")[1].split("/")[0].rpartition(":")[2], {**files, "server_name": server})
                for name, url, server in (
                    ("controller", controller.metrics.url, "controller.edgefarm.internal"),
                    ("device", status.device.metrics_address, "device.edgefarm.internal"),
                    ("stranger", controller.metrics.url, "device.edgefarm.internal"),
                )
            ]
            scrapes = [
                {"job_name": name, "scheme": "https", "tls_config": tls, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
                for name, port, tls in jobs
            ]
            configuration = tmp_path / "prometheus.yml"
            configuration.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": scrapes}))
            with Prometheus(configuration, tmp_path / "data") as prometheus:
                prometheus.wait(scraped(prometheus, "controller", "device", "stranger"), "scrapes")
                assert {m["job"]: v for m, v in prometheus.query("up")} == {"controller": 1, "device": 1, "stranger": 0}
                expiry = "edgefarm_certificate_expiry_timestamp_seconds - time()"
                assert 28 * 86400 < (prometheus.value(expiry) or 0) <= 30 * 86400
                assert (prometheus.value('edgefarm_controller_certificate_expiry_timestamp_seconds{certificate="authority"}') or 0) > 2e9
                controller.registry.revoke("pi")
                prometheus.wait(lambda: prometheus.query('edgefarm_device_up{job="controller"}') == [], "the revoked device to vanish")
                controller.registry.revoke("prometheus", "user")
                prometheus.wait(lambda: prometheus.value('up{job="controller"}') == 0, "the revoked user to be refused")


def scraped(prometheus: Prometheus, *jobs: str) -> Callable[[], bool]:
    return lambda: {m["job"] for m, _ in prometheus.query("up")} == set(jobs)


def test_rules_are_tested() -> None:
    tests = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))
    done = subprocess.run(["promtool", "test", "rules", *map(str, tests)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    rules = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
    checked = subprocess.run(["promtool", "check", "rules", "--lint=all", "--lint-fatal", *map(str, rules)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    config = subprocess.run(["promtool", "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml")], capture_output=True, text=True)
    assert config.returncode == 0, config.stdout + config.stderr
