"""The fleet file: every mistake names file, line, field and what would be right, before anything runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from controller.config import load_fleet
from controller.config.measure import scenario_of, where_of
from edgefarm.errors import FleetFileError, NotAvailable, UserError
from edgefarm.model import Scenario

GOOD = """\
version: 1
name: kitchen
model: {path: model.onnx}
data:
  evaluation: evaluation.npz
  metric: top1
devices:
  - {name: bench-1, local: {runtimes: [onnxruntime], threads: 1}}
  - {name: bench-2, local: {threads: 2}, objective: size, constraints: {latency_p90_ms: 80}}
select:
  objective: latency_p50
  constraints: {accuracy_drop: 0.01}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("model.onnx", "other.onnx", "model.tflite", "net.py", "net.h5"):
        (tmp_path / name).write_bytes(b"")
    np.savez(tmp_path / "evaluation.npz", x=np.zeros(1))
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "edge.yaml"
    path.write_text(text)
    return path


def test_a_good_file(folder: Path) -> None:
    fleet = load_fleet(write(folder, GOOD))
    assert fleet.model == folder / "model.onnx"
    assert fleet.model_name == "kitchen"
    first, second = fleet.targets
    assert (first.threads, first.options_threads, first.objective) == (1, (1,), "latency_p50")
    assert second.objective == "size"
    assert second.constraints.model_dump(exclude_none=True) == {"accuracy_drop": 0.01, "latency_p90_ms": 80}
    assert fleet.state(None) == folder / ".edgefarm" / "kitchen"
    assert fleet.state(Path("/elsewhere")) == Path("/elsewhere")


def test_the_models_format_gives_the_runtime_of_a_local_device(folder: Path) -> None:
    assert [t.runtimes for t in load_fleet(write(folder, GOOD)).targets] == [("onnxruntime",)] * 2
    assert load_fleet(write(folder, GOOD.replace("model.onnx", "model.tflite"))).targets[1].runtimes == ("tflite",)
    assert load_fleet(write(folder, GOOD.replace("model.onnx", '"net.py:build"'))).targets[1].runtimes == ("onnxruntime",)


def test_other_formats_are_activated_only_where_runtimes_are_named(folder: Path) -> None:
    """Programs that load the activated file expect the source's format."""
    first, second = load_fleet(write(folder, GOOD)).targets
    assert (first.formats, second.formats) == ((), ("onnx",))
    second = load_fleet(write(folder, GOOD.replace("objective: size", "objective: size, runtimes: [onnxruntime]"))).targets[1]
    assert second.formats == ()
    assert load_fleet(write(folder, GOOD + "rollout: {activate: none}\n")).targets[1].formats == ()


WRONG: dict[str, tuple[str, str, str]] = {
    "unknown key": ("name: kitchen", "name: kitchen\nobjectiv: x", "edge.yaml:3: objectiv: unknown key 'objectiv'"),
    "near name": (
        "  objective: latency_p50",
        "  objectve: latency_p50",
        "unknown key 'objectve'; did you mean 'objective'?",
    ),
    "near nested": ("threads: 1}", "thread: 1}", "devices[0].local.thread: unknown key 'thread'; did you mean 'threads'?"),
    "wrong type": ("threads: 1}", "threads: many}", "edge.yaml:8: devices[0].local.threads: "),
    "too small": ("threads: 1}", "threads: 0}", "devices[0].local.threads: Input should be greater than or equal to 1, got 0"),
    "string as number": ("accuracy_drop: 0.01", 'accuracy_drop: "0.01"', "select.constraints.accuracy_drop: "),
    "unknown objective": ("objective: latency_p50", "objective: speed", "edge.yaml:11: select.objective: "),
    "missing key": ("  evaluation: evaluation.npz\n", "", "data.evaluation: is missing"),
    "version": ("version: 1", "version: 2", "edge.yaml:1: version: "),
    "said twice": ("name: kitchen", "name: kitchen\nname: other", "edge.yaml:3: name: this key stands here twice"),
    "not yaml": ("version: 1", "version: [1", "not valid YAML"),
    "missing model": ("model.onnx", "modell.onnx", "no such file: "),
    "missing data": ("evaluation.npz", "evaluatoin.npz", "did you mean 'evaluation.npz'?"),
    "two of a name": ("name: bench-2", "name: bench-1", "devices[1].name: two devices are named 'bench-1'"),
    "bad name": ("name: kitchen", "name: ../kitchen", "edge.yaml:2: name: "),
    "more threads than the device": (
        "threads: 1}}",
        "threads: 1}, threads: [1, 2]}",
        "edge.yaml:8: devices[0].threads[1]: 2 is more than the device's own limit 'local.threads', which is 1",
    ),
    "no threads": ("threads: 1}}", "threads: 1}, threads: []}", "devices[0].threads: List should have at least 1 item"),
    "local at a controller": (
        "name: kitchen",
        "name: kitchen\ncontroller: farm:7443",
        "devices[0].local: a device that the command starts",
    ),
    "enrolled": ("local: {threads: 2}, ", "", "devices[1]: an enrolled device needs 'controller:'"),
    "selector": ("{name: bench-1, local", "{selector: {board: pi}, local", "devices[0].selector: an enrolled device needs 'controller:'"),
    "count of nothing": ("{name: bench-1, local", "{name: bench-1, count: 2, local", "devices[0].count: counts the devices that match"),
    "missing alternative": ("{path: model.onnx}", "{path: model.onnx, alternatives: [m.tflite]}", "model.alternatives[0]: no such file"),
    "alternative of one format": (
        "{path: model.onnx}",
        "{path: model.onnx, alternatives: [other.onnx]}",
        "model.alternatives[0]: 'other.onnx' is ONNX, as 'model.onnx' is; an alternative is the network in another format",
    ),
    "alternative of no format": (
        "{path: model.onnx}",
        "{path: model.onnx, alternatives: [evaluation.npz]}",
        "model.alternatives[0]: 'evaluation.npz' has no format that is known; a model ends in one of .onnx, .tflite, .xml",
    ),
    "torch without a file": ("model.onnx", "model.py:make", "edge.yaml:3: model.path: no such file"),
    "torch without a function": ("path: model.onnx", 'path: "net.py:"', "edge.yaml:3: model.path: 'net.py:': write FILE.py:FUNCTION"),
    "torch with a bare file": (
        "model.onnx",
        "net.py",
        "'net.py' has no format that is known; a model ends in one of .onnx, .tflite, .xml, .keras, .h5; torch's are",
    ),
    "torch beside what it is exported to": (
        "{path: model.onnx}",
        '{path: "net.py:build", alternatives: [other.onnx]}',
        "model.alternatives[0]: 'other.onnx' is ONNX, as 'net.py:build' is",
    ),
    "Keras without a file": ("model.onnx", "net.keras", "edge.yaml:3: model.path: no such file"),
    "Keras as an alternative": (
        "{path: model.onnx}",
        "{path: model.onnx, alternatives: [net.h5]}",
        "model.alternatives[0]: 'net.h5' has no format that is known; a model ends in one of .onnx, .tflite, .xml",
    ),
    "Keras beside what it is exported to": (
        "{path: model.onnx}",
        "{path: net.h5, alternatives: [other.onnx]}",
        "model.alternatives[0]: 'other.onnx' is ONNX, as 'net.h5' is",
    ),
    "server without a rate": (
        "select:",
        "measure: {scenario: {kind: server}}\nselect:",
        "edge.yaml:10: measure.scenario.kind: 'server' needs 'rate_per_s': requests per second that arrive",
    ),
    "sustained without an end": (
        "select:",
        "measure: {scenario: {kind: sustained}}\nselect:",
        "measure.scenario.kind: 'sustained' needs 'duration_s': how long each launch runs",
    ),
    "batches where none are made": (
        "select:",
        "measure: {scenario: {batch_sizes: [1, 8]}}\nselect:",
        "edge.yaml:10: measure.scenario.batch_sizes: 'paced' has no 'batch_sizes'; 'offline' has",
    ),
    "a rate where all is there": (
        "select:",
        "measure: {scenario: {kind: offline, rate_per_s: 3}}\nselect:",
        "measure.scenario.rate_per_s: 'offline' has no 'rate_per_s'; 'paced' and 'server' have",
    ),
    "a duration where bursts decide": (
        "select:",
        "measure: {scenario: {kind: paced, duration_s: 3}}\nselect:",
        "measure.scenario.duration_s: 'paced' has no 'duration_s'; 'sustained' and 'server' have",
    ),
    "batch sizes twice": (
        "select:",
        "measure: {scenario: {kind: offline, batch_sizes: [1, 8, 8]}}\nselect:",
        "measure.scenario.batch_sizes: a batch size stands there twice: 1, 8, 8",
    ),
    "no batch sizes": (
        "select:",
        "measure: {scenario: {kind: offline, batch_sizes: []}}\nselect:",
        "measure.scenario.batch_sizes: List should have",
    ),
    "a rate of none": (
        "select:",
        "measure: {scenario: {kind: server, rate_per_s: 0}}\nselect:",
        "measure.scenario.rate_per_s: Input should be",
    ),
    "longer than the budget": (
        "select:",
        "measure: {scenario: {kind: sustained, duration_s: 200}}\nselect:",
        "measure.budget.minutes_per_device: 5 minutes hold no launch of a candidate and the baseline, 200 s each: give more than 6.66667",
    ),
    "a throughput above the rate": (
        "  constraints: {accuracy_drop: 0.01}",
        "  constraints: {throughput_per_s: 31}\nmeasure: {scenario: {kind: server, rate_per_s: 30}}",
        "edge.yaml:12: select.constraints.throughput_per_s: 31 is above measure.scenario.rate_per_s, 30: nothing reaches it",
    ),
    "a latency of batches": (
        "select:",
        "measure: {scenario: {kind: offline}}\nselect:",
        "edge.yaml:12: select.objective: 'latency_p50': under 'offline' a latency is that of a whole batch",
    ),
    "no window": (
        "select:",
        'measure: {window: "at night"}\nselect:',
        "measure.window: 'at night' is no part of the day",
    ),
    "an empty window": (
        "select:",
        'measure: {window: "22:00-22:00"}\nselect:',
        "measure.window: '22:00-22:00' is empty: it ends",
    ),
    "a window past the day": ("select:", 'measure: {window: "22:00-24:30"}\nselect:', "measure.window: '22:00-24:30': a day ends at 24:00"),
    "where nothing is named": ("select:", "measure: {where: {}}\nselect:", "measure.where: names no label"),
    "another fallback": ("select:", "measure: {on_fallback: stop}\nselect:", "measure.on_fallback: Input should be 'flag' or 'fail'"),
    "runtimes left": ("threads: 1}}", "threads: 1}, runtimes: [tflite]}", "devices[0].runtimes: no runtime is left"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_named(folder: Path, name: str) -> None:
    old, new, message = WRONG[name]
    assert old in GOOD
    with pytest.raises(FleetFileError) as caught:
        _ = load_fleet(write(folder, GOOD.replace(old, new, 1))).targets
    assert message in str(caught.value)
    assert str(folder / "edge.yaml") in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("scenario", ["{kind: server, rate_per_s: 30}", "{kind: paced, rate_per_s: 30}"])
def test_a_given_rate_is_no_objective(folder: Path, scenario: str) -> None:
    text = GOOD.replace("objective: latency_p50", "objective: throughput") + f"measure: {{scenario: {scenario}}}\n"
    with pytest.raises(FleetFileError, match=r"edge\.yaml:11: select\.objective: 'throughput' with rate_per_s 30: the rate is given"):
        load_fleet(write(folder, text))


def test_what_a_batch_takes_is_no_limit_of_a_device(folder: Path) -> None:
    text = GOOD.replace("objective: latency_p50", "objective: throughput") + "measure: {scenario: {kind: offline, batch_sizes: [1, 8]}}\n"
    with pytest.raises(FleetFileError, match=r"edge.yaml:9: devices\[1\].constraints.latency_p90_ms: under 'offline' a latency"):
        load_fleet(write(folder, text))
    fleet = load_fleet(write(folder, text.replace("latency_p90_ms: 80", "throughput_per_s: 80")))
    assert scenario_of(fleet.file.measure.scenario) == Scenario("offline", batch_sizes=(1, 8))


def test_an_objective_that_no_device_has_is_not_held_against_the_file(folder: Path) -> None:
    """`select.objective` has a default; where each entry has its own, it is nobody's."""
    text = GOOD.replace("local: {runtimes", "objective: memory, local: {runtimes").replace("latency_p90_ms", "size_mib")
    fleet = load_fleet(write(folder, text + "measure: {scenario: {kind: offline}}\n"))
    assert {t.objective for t in fleet.targets} == {"memory", "size"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("{}", Scenario()),
        ("{kind: paced, rate_per_s: 30}", Scenario("paced", 30.0)),
        ("{kind: sustained, duration_s: 1.5}", Scenario("sustained", duration_ns=1_500_000_000)),
        ("{kind: server, rate_per_s: 0.5, duration_s: 60}", Scenario("server", 0.5, duration_ns=60 * 10**9)),
    ],
)
def test_scenarios_are_what_they_say(folder: Path, written: str, meant: Scenario) -> None:
    fleet = load_fleet(write(folder, GOOD + f"measure: {{scenario: {written}}}\n"))
    assert scenario_of(fleet.file.measure.scenario) == meant


def test_energy_windows_and_places_may_be_asked_for(folder: Path) -> None:
    text = GOOD.replace("objective: latency_p50", "objective: energy").replace("accuracy_drop: 0.01", "energy_mj: 3")
    text += 'measure: {window: "22:00-05:00", where: {board: [pi-4, pi-5]}, on_fallback: fail}\n'
    fleet = load_fleet(write(folder, text))
    assert fleet.targets[0].objective == "energy"
    assert fleet.targets[1].constraints.energy_mj == 3
    assert (fleet.file.measure.window, fleet.file.measure.fails_on_fallback) == ("22:00-05:00", True)


def test_where_names_devices_of_the_class_that_measure_for_it(folder: Path) -> None:
    fleet = load_fleet(write(folder, GOOD + "measure: {where: {room: [lab, attic]}}\n"))
    where = where_of(fleet.file, fleet.document)
    assert where is not None
    assert where.only_on({"b": {"room": "lab"}, "a": {"room": "attic"}, "c": {"room": "hall"}, "d": {}}) == ("a", "b")
    with pytest.raises(FleetFileError, match=r"edge.yaml:13: measure.where: no device with room=lab\|attic is of the same class as c, d"):
        where.only_on({"d": {}, "c": {"room": "hall"}})
    bare = load_fleet(write(folder, GOOD))
    assert where_of(bare.file, bare.document) is None


LATER: dict[str, tuple[str, str, str]] = {
    "live": ("select:", "measure: {live: pause}\nselect:", "measure.live: "),
    "per": ("objective: latency_p50", "objective: latency_p50\n  per: class", "select.per: "),
    "max_variants": ("objective: latency_p50", "objective: latency_p50\n  max_variants: 2", "select.max_variants: "),
    "serve": ("select:", "rollout: {activate: serve}\nselect:", "rollout.activate: "),
    "waves": ("select:", "rollout: {waves: [100%]}\nselect:", "rollout.waves: "),
    "canary": ("select:", "rollout: {canary: {count: 2}}\nselect:", "rollout.canary: "),
    "switch": ("select:", "rollout: {switch: stop_first}\nselect:", "rollout.switch: "),
    "health": ("select:", "rollout: {health: {window_s: 5}}\nselect:", "rollout.health: "),
    "rollout window": ("select:", 'rollout: {window: "02:00-05:00"}\nselect:', "rollout.window: "),
    "watch": ("select:", "watch: {on_regression: rollback}\nselect:", "watch: "),
}


@pytest.mark.parametrize("name", LATER)
def test_what_is_not_built_is_refused_not_ignored(folder: Path, name: str) -> None:
    old, new, message = LATER[name]
    assert old in GOOD
    with pytest.raises(NotAvailable, match="not available in this version") as caught:
        load_fleet(write(folder, GOOD.replace(old, new, 1)))
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_defaults_of_what_is_not_built_may_be_written(folder: Path) -> None:
    text = GOOD + (
        "rollout:\n  activate: file\n  canary: {per: variant, count: 1}\n  waves: [25%, 100%]\n  switch: overlap\n"
        "  health: {window_s: 60, min_requests: 0, on_no_data: probe, max_latency_ratio: 1.2, max_error_rate: 0.0, check: null}\n"
        "watch: {on_regression: propose, notify: null}\nmeasure: {scenario: {kind: paced}, live: wait, accept: [stable, noisy]}\n"
    )
    assert load_fleet(write(folder, text)).file.measure.accept == ["stable", "noisy"]


def test_files_that_are_no_fleet_files(tmp_path: Path) -> None:
    with pytest.raises(FleetFileError, match="no such file"):
        load_fleet(tmp_path / "none.yaml")
    with pytest.raises(FleetFileError, match="a fleet file is a mapping"):
        load_fleet(write(tmp_path, "- 1\n"))
    with pytest.raises(FleetFileError, match="a fleet file is a mapping"):
        load_fleet(write(tmp_path, ""))
    with pytest.raises(FleetFileError, match="cannot be read"):
        load_fleet(tmp_path)
    big = write(tmp_path, "#" * (2 << 20))
    with pytest.raises(FleetFileError, match="larger than 1 MiB"):
        load_fleet(big)


def test_threads_stay_within_the_devices_limit(folder: Path) -> None:
    text = GOOD + "measure: {threads: [1, 2, 4]}\n"
    assert [t.options_threads for t in load_fleet(write(folder, text)).targets] == [(1,), (1, 2)]


def test_a_broken_model_is_an_error_when_the_run_is_identified(folder: Path) -> None:
    fleet = load_fleet(write(folder, GOOD))
    with pytest.raises(UserError, match=r"model\.onnx"):
        _ = fleet.spec_digest
