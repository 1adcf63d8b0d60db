"""Each number in a report stands with its verdict, interval, n and conditions, in every form; reports of earlier versions stay readable."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from controller.evidence import CONTROL, Entry, Evidence, Group, Launch
from controller.report import FORMS, forms, render, rows
from controller.report.candidate import Origin, candidate
from controller.report.document import noise_floor
from controller.selection import choose
from edgefarm.model import BatchResult, Conditions, EnergyResult, MemoryResult, OperatorTime, ProfileResult, Scenario, Trace
from tests.fakes.world import FakeWorld, make_group
from tests.unit.test_report import TRUTHS, hexed, without_reason

SCHEMA = json.loads((Path(forms.__file__).parent / "schema.json").read_text())
EARLIER = sorted((Path(__file__).parents[1] / "golden" / "report").glob("*.json"))
CPU, GPU = "CPUExecutionProvider", "CUDAExecutionProvider"
TRACES = (
    Trace("temperature_celsius", "cpu-thermal", 9, 48.0, 47.5, 52.5, 52.0),
    Trace("frequency_hertz", "cpu0", 9, 1.8e9, 1.8e9, 1.8e9, 1.8e9),
)
SETTINGS = {"governor": "performance", "affinity": "4-7"}
SEEN = Conditions(TRACES, others_cpu=0.1, others_cpu_peak=0.4, steal=0.0, settings=SETTINGS)
ENERGY = EnergyResult("", 2100.0, 2050.0, 2150.0, 4000, 5.2, 3.1, 10**10, 900, 90.0, "ina3221", "VDD_IN", "the whole board", "1 %", True)
NODES = (OperatorTime("conv1", "Conv", CPU, 90_000.0), OperatorTime("fc", "Gemm", GPU, 10_000.0))
PROFILE = ProfileResult("", NODES, {CPU: 1, GPU: 1}, 110_000.0, "onnxruntime", provider=GPU)
MIB = 2**20
MEMORY = MemoryResult("", 60 * MIB, 50 * MIB, 40 * MIB, 35 * MIB, 45 * MIB, 30 * MIB, 8 * MIB, "gpu0", MIB)


def measured(**changes: Any) -> tuple[Group, Evidence, Entry]:
    """A run's evidence with what later passes bring, for the winner."""
    world, group = FakeWorld(TRUTHS), replace(make_group(TRUTHS), **changes)
    evidence = world.run(make_group(TRUTHS))
    winner = choose(group, evidence, "d1").winner
    assert winner is not None
    key = winner.key
    launches = {k: tuple(on(x, SEEN) for x in found) for k, found in evidence.launches.items()}
    placed = tuple(replace(x, result=replace(x.result, placement=PROFILE.placement, provider=GPU)) for x in launches[key])
    brought = replace(
        evidence,
        energy={key: replace(ENERGY, key=key)},
        profiles={key: replace(PROFILE, key=key)},
        memory={key: replace(MEMORY, key=key)},
        launches={**launches, key: placed},
    )
    return group, brought, winner


def on(launch: Launch, conditions: Conditions) -> Launch:
    return replace(launch, conditions=conditions)


def shown(group: Group, evidence: Evidence, entry: Entry, file: str = "/m.onnx") -> dict[str, Any]:
    judgement = choose(group, evidence, "d1").judgement(entry.key)
    document = candidate(judgement, group, evidence, Origin((), file), "d1")
    assert list(without_reason(document)) == []
    jsonschema.validate(hexed(document), {**SCHEMA["$defs"]["candidate"], "$defs": SCHEMA["$defs"]})
    return document


def test_energy_memory_profile_and_fallback_are_shown_with_what_they_rest_on() -> None:
    document = shown(*measured())
    energy, memory = document["energy"], document["memory"]
    assert (energy["per_inference_uj"], energy["ci95"], energy["n"]) == (2100.0, [2050.0, 2150.0], 4000)
    assert (energy["source"], energy["rail"], energy["rate_hz"], energy["includes"]) == ("ina3221", "VDD_IN", 90.0, "the whole board")
    assert (energy["idle_watts"], energy["idle_subtracted"], energy["updates"]) == (3.1, True, 900)
    assert (memory["peak_rss_bytes"], memory["private_bytes"], memory["accelerator_bytes"]) == (20 * 2**20, 15 * 2**20, 8 * 2**20)
    assert document["profile"]["operators"][0]["share"] == pytest.approx(0.9)
    assert document["fallback"] == {"asked": "CUDAExecutionProvider", "nodes": 1, "time_share": pytest.approx(0.9)}


def test_conditions_hold_all_launches() -> None:
    group, evidence, entry = measured()
    first, *others = evidence.launches[entry.key]
    hot = replace(SEEN, throttled=("thermal",), others_cpu_peak=1.5, settings={"governor": "powersave"})
    known = shown(group, replace(evidence, launches={**evidence.launches, entry.key: (on(first, hot), *others)}), entry)["conditions"]
    assert known["launches"] >= len(others)
    traced = known["traces"]["temperature_celsius/cpu-thermal"]
    assert (traced["low"], traced["high"], traced["n"]) == (47.5, 52.5, 9 * known["launches"])


@pytest.mark.parametrize("unavailable", ["no rail covers this", ""])
def test_energy_that_could_not_be_told_is_null_with_its_reason(unavailable: str) -> None:
    group, evidence, entry = measured()
    told = {entry.key: EnergyResult(entry.key, unavailable=unavailable)} if unavailable else {}
    document = shown(group, replace(evidence, energy=told), entry)
    assert document["energy"] is None
    assert document["unavailable"]["energy"] == (unavailable or "not measured: no limit or objective asks for it")


def test_a_scenario_brings_its_numbers() -> None:
    group, evidence, entry = measured(scenario=Scenario("offline", batch_sizes=(1, 8, 64)), objective="throughput")
    batches = (BatchResult(1, 100, 1e6, 1_000_000), BatchResult(8, 50, 4e6, 4_000_000), BatchResult(64, unavailable="out of memory"))
    launches = tuple(
        replace(x, result=replace(x.result, batches=batches, samples_per_s=2000.0, regime="flat", unsettled=3))
        for x in evidence.launches[entry.key]
    )
    document = shown(group, replace(evidence, launches={**evidence.launches, entry.key: launches}), entry)
    throughput = document["throughput"]
    assert (throughput["per_s"], throughput["best_batch"]) == (pytest.approx(2000.0), 8)
    assert [b["per_s"] for b in throughput["batches"]] == [pytest.approx(1000.0), pytest.approx(2000.0), None]
    assert throughput["batches"][2]["unavailable"] == "out of memory"
    assert document["regime"] == {"launches": {"flat": throughput["launches"]}, "unsettled": 3 * throughput["launches"]}
    assert document["scenario"] == {"kind": "offline", "batch_sizes": [1, 8, 64]}
    assert document["reproduce"].endswith("--scenario offline --batch-sizes 1,8,64")


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        (Scenario(), ""),
        (Scenario("paced", 30.0), " --rate 30"),
        (Scenario("sustained", duration_ns=90 * 10**9), " --scenario sustained --duration 90"),
        (Scenario("server", 2.5), " --scenario server --rate 2.5"),
    ],
)
def test_reproduce_names_the_scenario(scenario: Scenario, words: str) -> None:
    assert shown(*measured(scenario=scenario))["reproduce"] == f"edge-agent bench /m.onnx --runtime onnxruntime --threads 1{words}"


def test_the_noise_floor_is_what_two_copies_show() -> None:
    group, evidence, _ = measured()
    copies = tuple(replace(x, result=replace(x.reference, key=CONTROL)) for x in evidence.launches[group.entries[1].key])
    unavailable: dict[str, str] = {}
    floor = noise_floor(group, replace(evidence, control=copies), unavailable)
    assert floor is not None
    assert (floor["ratio"], floor["launches"], unavailable) == (pytest.approx(1.0), len(copies), {})
    assert noise_floor(group, replace(evidence, control=()), unavailable) is None
    assert "second copy" in unavailable["noise_floor"]


def report_of(group: Group, evidence: Evidence) -> dict[str, Any]:
    choice = choose(group, evidence, "d1")
    candidates = {j.entry.key: candidate(j, group, evidence, Origin(), "d1") for j in choice.judgements}
    assert choice.winner is not None
    device = {
        "name": "d1", "class": "c", "emulated": False, "reason": choice.reason, "baseline": candidates[group.baseline.key],
        "winner": candidates[choice.winner.key], "candidates": list(candidates.values()), "failures": [], "deployment": None,
        "noise_floor": {"ratio": 1.001, "ci95": [0.998, 1.004], "launches": 5},
    }  # fmt: skip
    return {"run": "m@1", "summary": "s", "devices": [device], "notes": [], "phases_s": {}, "edgefarm_version": "1", "started": None}


SAID = (
    "stable", "screened", "2.1 ±2.4%", "47.5-52.5 °C", "1.8-1.8 GHz", "governor performance", "affinity 4-7", "at most 0.40",
    "no throttling seen", "two copies of the baseline: 1.0010x (0.9980-1.0040)", "conv1 (Conv) 90%",
    "1 nodes of int8-static ran elsewhere than on CUDAExecutionProvider, 90% of the time", "energy from ina3221 VDD_IN at 90 Hz",
)  # fmt: skip


def test_people_never_see_a_number_without_its_verdict_and_n() -> None:
    group, evidence, _ = measured()
    report = report_of(group, evidence)
    (device,) = report["devices"]
    for one in device["candidates"]:
        row = rows.row(device, one)
        if row["p50 ms"] != "-":
            assert row["verdict"] == (one["verdict"] or rows.SCREENED)
            assert int(row["n"]) > 0
            assert row["p50 ms"].startswith("~") == (one["verdict"] is None)
    for text in (render(report, "table", 300), render(report, "html")):
        missing = [part for part in SAID if part not in text]
        assert missing == [], text


def test_the_csv_carries_intervals_and_conditions() -> None:
    group, evidence, winner = measured()
    table = list(csv.DictReader(io.StringIO(render(report_of(group, evidence), "csv"))))
    row = next(r for r in table if r["variant"] == winner.variant)
    assert float(row["p50_low_ns"]) <= float(row["p50_ns"]) <= float(row["p50_high_ns"])
    assert (row["energy_uj"], row["energy_source"], row["fallback_nodes"], row["scenario"]) == ("2100.0", "ina3221", "1", "paced")
    assert float(row["others_cpu"]) == pytest.approx(0.1)


@pytest.mark.parametrize("path", EARLIER, ids=lambda p: p.stem)
def test_reports_of_earlier_versions_can_be_read_in_every_form(path: Path) -> None:
    earlier = json.loads(path.read_text())
    jsonschema.validate(earlier, SCHEMA)
    for form in FORMS:
        assert "int8-static" in render(earlier, form)
    assert len(EARLIER) > 0
