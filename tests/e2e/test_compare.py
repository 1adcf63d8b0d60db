"""`controller compare` and `controller bench` on real local agents: true differences, limits, variants of runs, and going on."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest

from controller.compare import rules
from controller.report import forms
from edgefarm.model import Verdict
from tests import zoo
from tests.e2e.command import controller, deploy, start
from tests.e2e.zoo_fleets import write_fleet

COMPARISON = json.loads((Path(rules.__file__).parent / "schema.json").read_text())
REPORT = json.loads((Path(forms.__file__).parent / "schema.json").read_text())
# What is true here is so clear that no busy machine hides it, and a bad verdict need not be waited out.
MEASURE = {"budget": {"minutes_per_device": 0.3}, "accept": [v.value for v in Verdict]}
WIDE = 2**15  # of the heavier network's hidden layer; the fleet's has 64


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    fleet = write_fleet(folder, zoo.dense(folder))
    (folder / "wide").mkdir()
    zoo.dense(folder / "wide", width=WIDE).rename(folder / "heavier.onnx")
    document = json.loads(fleet.read_text())
    document["measure"] = MEASURE
    fleet.write_text(json.dumps(document))
    return fleet


def source(fleet: Path) -> str:
    return str(json.loads(fleet.read_text())["model"]["path"])


def test_a_limit_that_is_broken_ends_with_7_and_says_so_in_every_form(fleet: Path) -> None:
    arguments = (source(fleet), "heavier.onnx", "--fleet", str(fleet), "--max-slowdown", "2%", "--json", "--junit", "gate.xml")
    done = controller("compare", *arguments, cwd=fleet.parent)
    assert done.code == 7, done.stderr[-3000:]
    told = done.document
    jsonschema.validate(told, COMPARISON)
    (device,) = told["devices"]
    assert (told["verdict"], told["exit_code"], device["gates"]["slowdown"]) == ("slower", 7, "beyond")
    assert device["speedup"]["ci95"][1] < 1
    assert device["base"]["latency_ns"]["n"] > 0
    assert {"others_cpu", "throttled", "settings"} <= set(device["conditions"])
    suite = ElementTree.parse(fleet.parent / "gate.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    shown = controller("report", told["run"], "--fleet", str(fleet), "--format", "json", cwd=fleet.parent)
    assert (shown.code, shown.document) == (0, told)


@pytest.mark.long
def test_without_a_limit_slower_is_an_answer_and_the_other_way_round_is_faster(fleet: Path) -> None:
    done = controller("compare", "heavier.onnx", source(fleet), "--fleet", str(fleet), cwd=fleet.parent)
    assert done.code == 0, done.stderr[-3000:]
    assert "\nfaster: faster on 1 of 1 device\n" in done.stdout
    assert "  verdict " in done.stdout


@pytest.mark.long
def test_variants_of_a_run_are_compared_as_they_ran(fleet: Path) -> None:
    run = deploy(fleet)["run"]
    done = controller("compare", f"{run}:baseline", f"{run}:baseline", "--fleet", str(fleet), "--json", "--within", "50%", cwd=fleet.parent)
    assert done.code == 0, done.stderr[-3000:]
    assert done.document["verdict"] == "same"
    stored = controller("compare", run, run, "--fleet", str(fleet), "--json", "--within", "50%", cwd=fleet.parent)
    assert stored.code in (0, 8), stored.stderr[-3000:]  # 8 where the machine was too busy for the run to be believed
    jsonschema.validate(stored.document, COMPARISON)
    assert stored.document["devices"][0]["differs"] == []
    wrong = controller("compare", f"{run}:nothing", source(fleet), "--fleet", str(fleet), cwd=fleet.parent)
    assert wrong.code == 2
    assert "there are: winner, baseline" in wrong.stderr


@pytest.mark.long
def test_an_interrupted_comparison_goes_on_and_an_ended_one_is_taken_anew(fleet: Path) -> None:
    model = source(fleet)
    arguments = ("compare", model, model, "--fleet", str(fleet), "--within", "0%", "--max-slowdown", "0.001%", "--events", "events.jsonl")
    process = start(arguments, fleet.parent)
    assert process.stderr is not None
    for line in process.stderr:
        if " launches" in line:  # the first of them is being taken
            break
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    for _ in range(2):
        controller(*arguments, cwd=fleet.parent)
    events = [json.loads(line) for line in (fleet.parent / "events.jsonl").read_text().splitlines()]
    first, resumed, anew = [e["run"] for e in events if e["event"] == "run"]
    assert first == resumed
    assert anew != first


@pytest.mark.long
def test_bench_measures_what_is_given_and_chooses_nothing(fleet: Path) -> None:
    done = controller("bench", "--variant", "heavier.onnx", "--fleet", str(fleet), "--json", cwd=fleet.parent)
    assert done.code in (0, 8), done.stderr[-3000:]  # 8 where the machine was too busy to believe a number
    jsonschema.validate(done.document, REPORT)
    (device,) = done.document["devices"]
    assert (device["winner"], device["reason"]) == (None, "measured; nothing was to be chosen")
    names = {c["variant"]: c for c in device["candidates"]}
    assert set(names) == {"source", "heavier.onnx"}
    assert names["heavier.onnx"]["speedup_vs_baseline"]["ratio"] < 0.9
    assert names["heavier.onnx"]["latency_ns"]["n"] > 0
    assert names["heavier.onnx"]["memory"]["peak_rss_bytes"] > 0
    assert names["heavier.onnx"]["accuracy"]["n"] > 0
    assert device["noise_floor"]["launches"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("compare", "missing.onnx", "heavier.onnx"), "no such file, and no run"),
        (("compare", "heavier.onnx", "edge.yaml"), "the format is told by the suffix"),
        (("compare", "zoo@9:winner", "heavier.onnx"), "no run is named 'zoo@9'"),
        (("compare", "heavier.onnx", "heavier.onnx", "--max-slowdown", "fast"), "--max-slowdown fast: not a percentage"),
        (("bench", "--variant", "missing.onnx"), "--variant missing.onnx: no such file"),
    ],
)
def test_mistakes_are_named(fleet: Path, arguments: tuple[str, ...], says: str) -> None:
    done = controller(*arguments, "--fleet", str(fleet), cwd=fleet.parent)
    assert (done.code, done.stdout) == (2, "")
    assert says in done.stderr
