"""What an agent's page says, how it is told to the controller, and what the controller takes of it."""

from __future__ import annotations

import json
import queue
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent.metrics import Counters, Page
from agent.sensors import Absent, Observation, Reading, Setting, collect_by_sensor
from agent.telemetry import Reporter
from controller.artifacts import ArtifactStore
from controller.farm import Farm
from controller.metrics import Listener
from controller.report.kept import keep
from controller.sessions import Peer
from controller.store import SqlStore
from controller.telemetry import Relay
from edgefarm.digest import digest_bytes
from edgefarm.errors import Busy, StorageError
from edgefarm.metrics import DEVICE_METRICS, render
from edgefarm.model import (
    AgentBody,
    ContenderResult,
    EnergyResult,
    Failure,
    FailureKind,
    Family,
    LatencyResult,
    MemoryResult,
    Series,
    Telemetry,
    Welcome,
)
from tests.fakes.orders import a_device, a_hello
from tests.fixtures.power import AGX_ORIN, RAPL
from tests.fixtures.trees import BARE, LAPTOP, PI4, plant

HOUR_NS = 3600 * 10**9


def page(tmp_path: Path, counters: Counters | None = None, **changes: object) -> Page:
    parts = {"sensors": dict, "deployments": dict, "memory_bytes": lambda: 2**20, **changes}
    return Page(counters or Counters(), tmp_path, **parts)  # type: ignore[arg-type]


def series_of(families: Sequence[Family], name: str) -> dict[tuple[str, ...], float]:
    return {tuple(s.labels.values()): s.value for f in families if f.name == name for s in f.series}


@pytest.mark.parametrize("tree", [PI4, LAPTOP, BARE], ids=["pi4", "laptop", "bare"])
def test_a_page_holds_only_what_the_table_knows(tmp_path: Path, tree: Mapping[str, str]) -> None:
    root = plant(tree, tmp_path / "root")
    families = page(tmp_path, sensors=lambda: collect_by_sensor(root), expiry=lambda: 1e9).families()
    assert [f.name for f in families] == sorted({f.name for f in families})
    for family in families:
        for series in family.series:
            assert tuple(series.labels) == DEVICE_METRICS[family.name].labels


def test_a_board_under_heat(tmp_path: Path) -> None:
    root = plant(PI4, tmp_path / "root")
    families = page(tmp_path, sensors=lambda: collect_by_sensor(root)).families()
    assert series_of(families, "edgefarm_temperature_celsius") == {("cpu-thermal",): 80.277}
    throttled = series_of(families, "edgefarm_throttled")
    assert throttled["cooling: cpufreq-cpu0#0",] == throttled["firmware: under-voltage",] == 1
    assert throttled["firmware: frequency capped",] == 0
    assert series_of(families, "edgefarm_collector_success")["temperature",] == 1


def test_what_cannot_be_read_is_not_there_and_said_so(tmp_path: Path) -> None:
    def broken() -> Mapping[str, object]:
        raise OSError(5, "Input/output error")

    def gone() -> float:
        raise StorageError("identity.json: Input/output error")

    absent = {"power": [Absent("power_watts", "no rail")]}
    families = page(tmp_path / "gone", sensors=lambda: absent, deployments=broken, memory_bytes=lambda: 0, expiry=gone).families()
    names = {f.name for f in families}
    assert not names & {"edgefarm_disk_free_bytes", "edgefarm_agent_memory_bytes", "edgefarm_deployment_info", "edgefarm_power_watts"}
    assert "edgefarm_certificate_expiry_timestamp_seconds" not in names
    assert series_of(families, "edgefarm_collector_success") == dict.fromkeys(
        [("power",), ("state",), ("deployments",), ("certificate",)], 0
    )


def test_two_readings_of_one_source_are_one_series(tmp_path: Path) -> None:
    twice: list[Observation] = [
        Reading("temperature_celsius", "soc", 40.0),
        Reading("temperature_celsius", "soc", 41.0),
        Setting("x", "", "y"),
    ]
    families = page(tmp_path, sensors=lambda: {"temperature": twice}).families()
    assert series_of(families, "edgefarm_temperature_celsius") == {("soc",): 41.0}


@pytest.mark.parametrize("emulated", [True, False])
def test_whether_the_device_is_emulated(tmp_path: Path, emulated: bool) -> None:
    assert series_of(page(tmp_path, emulated=emulated).families(), "edgefarm_device_emulated") == {(): float(emulated)}


def test_counters_begin_with_zero_and_count(tmp_path: Path) -> None:
    counters = Counters()
    before = page(tmp_path, counters).families()
    assert set(series_of(before, "edgefarm_trials_total").values()) == {0}
    assert series_of(before, "edgefarm_deployment_rollbacks_total") == {("user",): 0}
    counters.add_trial("net", Failure(FailureKind.OOM, "too much"))
    counters.add_trial("net", LatencyResult((ContenderResult("k", 100, 1e6, 2_000_000, 3_000_000, 4_000_000, 1, 1, 1),)))
    counters.add_trial("net", MemoryResult("k", 3, 2, 1, 1))
    counters.add_transfer("fetch", 10)
    after = page(tmp_path, counters).families()
    trials = series_of(after, "edgefarm_trials_total")
    assert (trials["ok",], trials["oom",], sum(trials.values())) == (2, 1, 3)
    # 100 inferences carry a p90, not a p99.
    assert series_of(after, "edgefarm_trial_latency_seconds") == {("net", "p50"): 0.002, ("net", "p90"): 0.003}
    assert series_of(after, "edgefarm_trial_memory_bytes") == {("net",): 3}
    assert series_of(after, "edgefarm_artifact_transfer_bytes_total") == {("fetch",): 10, ("push",): 0}


def test_energy_of_the_last_trial_and_power_by_rail(tmp_path: Path) -> None:
    counters = Counters()
    counters.add_trial("net", EnergyResult("k", 1500.0))
    counters.add_trial("other", EnergyResult("k", unavailable="no power sensor"))
    root = plant({**AGX_ORIN, **RAPL}, tmp_path / "root")
    families = page(tmp_path, counters, sensors=lambda: collect_by_sensor(root, ["rails"])).families()
    assert series_of(families, "edgefarm_trial_energy_joules") == {("net",): 0.0015}
    assert series_of(families, "edgefarm_power_watts")["hwmon/VDD_GPU_SOC",] == pytest.approx(3.92)
    assert set(series_of(families, "edgefarm_energy_joules_total")) == {("rapl/package-0",), ("rapl/core-0",), ("rapl/dram-0",)}
    assert series_of(families, "edgefarm_collector_success")["rails",] == 1


def test_only_the_newest_models_are_remembered(tmp_path: Path) -> None:
    counters = Counters()
    for number in [*range(32), 0, 32]:
        counters.add_trial(f"m{number}", MemoryResult("k", number, 0, 0, 0))
    remembered = series_of(page(tmp_path, counters).families(), "edgefarm_trial_memory_bytes")
    assert len(remembered) == 32
    assert ("m0",) in remembered
    assert ("m1",) not in remembered


class Told:
    """Takes what a reporter sends; `there`: whether there is a session."""

    def __init__(self) -> None:
        self.there = True
        self.families: list[Family] = []
        self.sent: queue.SimpleQueue[Telemetry] = queue.SimpleQueue()
        self.broken: list[BaseException] = []
        self.reporter = Reporter(self.page, self.send)

    def page(self) -> list[Family]:
        if self.broken:
            raise self.broken.pop()
        return list(self.families)

    def send(self, body: AgentBody) -> bool:
        assert isinstance(body, Telemetry)
        if self.there:
            self.sent.put(body)
        return self.there

    def next(self) -> list[str]:
        return sorted(f.name if f.series else f"-{f.name}" for f in self.sent.get(timeout=20).families)


def a_family(name: str, value: float = 1.0) -> Family:
    return Family(name, (Series({}, value),))


def test_a_session_is_told_everything_then_changes() -> None:
    told = Told()
    told.families = [a_family("a"), a_family("b")]
    told.reporter.attached(20_000_000)
    assert told.next() == ["a", "b"]
    told.families = [a_family("a", 2.0), a_family("c")]
    changes: set[str] = set()
    while changes != {"a", "-b", "c"}:
        news = told.next()
        assert not set(news) & changes, "said twice"
        changes |= set(news)
    told.reporter.attached(HOUR_NS)  # a new session, which knows nothing
    while (news := told.next()) != ["a", "c"]:
        assert news == []  # the last reports of the session before
    told.reporter.stop()


def test_a_sensor_that_fails_costs_one_report(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    told.broken, told.families = [RuntimeError("a driver's bug")], [a_family("a")]
    told.reporter.attached(10_000_000)
    assert told.next() == ["a"]
    told.reporter.stop()
    assert "a driver's bug" in caplog.text


def test_what_could_not_be_sent_is_said_again() -> None:
    told = Told()
    told.there, told.families = False, [a_family("a")]
    told.reporter.attached(10_000_000)
    told.there = True
    assert told.next() == ["a"]
    told.reporter.stop()


def test_a_controller_that_wants_no_telemetry_gets_none() -> None:
    told = Told()
    told.reporter.attached(0)
    assert not told.reporter._thread.is_alive()
    told.reporter.attached(HOUR_NS)
    assert told.next() == []
    told.reporter.attached(0)
    told.reporter.stop()
    told.reporter._thread.join(20)
    assert not told.reporter._thread.is_alive()
    assert told.sent.empty()


def test_the_relay_keeps_the_newest_of_the_present_session() -> None:
    relay = Relay(15.0, lambda: 1234)
    assert relay.begin("d") == 15 * 10**9
    assert relay.report("d").heard_unix_ms == 0
    relay.take("d", Telemetry((a_family("edgefarm_load1"), a_family("edgefarm_disk_free_bytes"))))
    relay.take("d", Telemetry((a_family("edgefarm_load1", 2.0), Family("edgefarm_disk_free_bytes"))))
    assert relay.report("d").families == {"edgefarm_load1": a_family("edgefarm_load1", 2.0)}
    assert relay.report("d").heard_unix_ms == 1234
    assert not relay.report("other").families
    relay.begin("d")
    assert not relay.report("d").families
    assert relay.counted()[0] == 2


def test_a_session_that_was_superseded_tells_nothing_more(tmp_path: Path) -> None:
    store = SqlStore(":memory:")
    farm = Farm(store, ArtifactStore(tmp_path), telemetry_s=2.0)
    sessions = [farm.attach(Peer("d", certified=True), a_hello(a_device("d"), instance), lambda: None) for instance in ("old", "new")]
    (welcome, *_) = sessions[1].take()
    assert isinstance(welcome, Welcome)
    assert welcome.telemetry_ns == 2 * 10**9
    farm.receive(sessions[1], Telemetry((a_family("edgefarm_load1", 2.0),)))
    with pytest.raises(Busy):
        farm.receive(sessions[0], Telemetry((a_family("edgefarm_load1", 1.0),)))
    assert farm.relay.report("d").families == {"edgefarm_load1": a_family("edgefarm_load1", 2.0)}
    store.close()


def test_a_device_cannot_say_what_it_likes() -> None:
    relay = Relay(15.0, lambda: 0)
    zones = tuple(Series({"zone": f"{n:0300}", "device": "another", "job": "x"}, n) for n in range(5))
    many = Family("edgefarm_throttled", tuple(Series({"reason": str(n)}, 1.0) for n in range(2000)))
    relay.take(
        "d",
        Telemetry((a_family("go_goroutines"), a_family("edgefarm_device_up", 0.0), Family("edgefarm_temperature_celsius", zones), many)),
    )
    kept = relay.report("d").families
    assert set(kept) == {"edgefarm_temperature_celsius", "edgefarm_throttled"}
    (zone,) = kept["edgefarm_temperature_celsius"].series  # cut to the same name, they are the same
    assert set(zone.labels) == {"zone"}
    assert len(zone.labels["zone"]) == 200
    assert sum(len(f.series) for f in kept.values()) == 512


def test_the_text_of_a_page() -> None:
    families = [Family("edgefarm_trials_total", (Series({"outcome": 'a"b\n'}, 3.0),)), a_family("edgefarm_unheard_of")]
    lines = render(DEVICE_METRICS, [("pi", families), ("nano", families[:1])]).decode().splitlines()
    assert lines == [
        "# HELP edgefarm_trials_total Attempts that ended since the agent started, by outcome.",
        "# TYPE edgefarm_trials_total counter",
        'edgefarm_trials_total{device="pi",outcome="a\\"b\\n"} 3.0',
        'edgefarm_trials_total{device="nano",outcome="a\\"b\\n"} 3.0',
    ]


def test_a_report_that_somebody_took_away_leaves_the_page_whole(tmp_path: Path) -> None:
    store = SqlStore(":memory:")
    farm = Farm(store, ArtifactStore(tmp_path))
    listener = Listener(farm, "127.0.0.1:0")
    farm.attach(Peer("d", certified=True), a_hello(a_device("d")), lambda: None)
    device = {"name": "d", "winner": {"accuracy": {"metric": "top1", "value": 0.5}}}
    digest = keep({"model": {"name": "net"}, "devices": [device]}, farm.put)
    for name, report in (("c", digest), ("b", digest_bytes(b"not there"))):
        farm.update_run(replace(farm.open_run(name, "spec", "{}", "me", {}), state="done", report_digest=report))
    page = listener._metrics()[1].decode()
    assert 'edgefarm_controller_runs{state="done"} 2.0' in page
    assert [line.rpartition(" ")[2] for line in page.splitlines() if line.startswith("edgefarm_model_metric{")] == ["0.5"]
    listener.stop()
    store.close()


def test_a_run_that_is_taken_up_again_is_not_done_any_more(tmp_path: Path) -> None:
    store = SqlStore(":memory:")
    farm = Farm(store, ArtifactStore(tmp_path))
    listener = Listener(farm, "127.0.0.1:0")

    def shown() -> tuple[set[str], set[str]]:
        lines = listener._metrics()[1].decode().splitlines()
        runs = {line for line in lines if line.startswith("edgefarm_controller_runs{")}
        return runs, {line.rpartition(" ")[2] for line in lines if line.startswith("edgefarm_model_metric{")}

    def report(value: float) -> str:
        accuracy = {"metric": "top1", "value": value}
        return json.dumps({"model": {"name": "net"}, "devices": [{"name": "d", "winner": {"accuracy": accuracy}}]})

    farm.attach(Peer("d", certified=True), a_hello(a_device("d")), lambda: None)
    first = farm.open_run("c", "spec", "{}", "me", {})
    farm.update_run(replace(first, state="done", report=report(0.5), finished_unix_ms=1))
    assert shown() == ({'edgefarm_controller_runs{state="done"} 1.0'}, {"0.5"})
    farm.update_run(replace(first, state="measuring"))
    assert shown() == ({'edgefarm_controller_runs{state="measuring"} 1.0'}, {"0.5"})
    farm.update_run(replace(first, state="done", report=report(0.75), finished_unix_ms=2))
    farm.open_run("c", "another", "{}", "me", {})
    assert shown() == ({'edgefarm_controller_runs{state="done"} 1.0', 'edgefarm_controller_runs{state="open"} 1.0'}, {"0.75"})
    listener.stop()
    store.close()
