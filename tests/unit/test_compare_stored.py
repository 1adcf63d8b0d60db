"""Two runs compared by what their reports hold: a common baseline cancels the day, what differs is said, doubt is never an answer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

import controller.compare
from controller.compare import document, forms
from controller.compare.outcome import problem
from controller.compare.rules import Gate, Rules
from controller.compare.sides import FileSide, RunSide, both, candidate_of, candidates_of, parse, report_of
from controller.compare.stored import find_all
from edgefarm.errors import UserError
from edgefarm.model import Artifact, Candidate, FileEntry, Io, TensorMap
from edgefarm.statistics import Relation

SCHEMA = json.loads((Path(controller.compare.__file__).parent / "schema.json").read_text())


def candidate(name: str, p50: float, speedup: float, half: float = 0.002) -> dict[str, Any]:
    digest = f"sha256:{name:0>64.64}"
    return {
        "variant": name,
        "runtime": "onnxruntime",
        "options": {"threads": 1},
        "artifact": {"digest": digest, "bytes": 10, "format": "onnx", "files": [{"name": "m.onnx", "digest": digest, "bytes": 10}]},
        "io": None,
        "latency_ns": {"n": 900, "launches": 12, "p50": {"value": p50, "ci95": [p50 * (1 - half), p50 * (1 + half)]}},
        "speedup_vs_baseline": {"ratio": speedup, "ci95": [speedup * (1 - half), speedup * (1 + half)]},
        "verdict": "stable",
        "verdict_detail": "",
        "scenario": {"kind": "paced"},
        "energy": None,
        "unavailable": {"energy": "no power sensor"},
        "conditions": {"settings": {"governor": "performance"}, "throttled": []},
        "measured_on": "bench-1",
        "measured_at": "2026-11-30T00:00:00Z",
    }


def report(run: str, winner: dict[str, Any], baseline: dict[str, Any] | None = None) -> dict[str, Any]:
    base = baseline or candidate("source", 2e6, 1.0)
    device = {
        "name": "bench-1", "class": "c1", "fingerprint": {"cpu": "x", "runtimes": {"onnxruntime": "1.32"}},
        "baseline": base, "winner": winner, "candidates": [base, winner], "reason": "best",
    }  # fmt: skip
    return {"run": run, "edgefarm_version": "0.1.0", "devices": [device]}


def test_a_slower_day_does_not_make_a_model_slower() -> None:
    """The machine took 30 % more time for both in the second run."""
    first = report("m@1", candidate("int8", 1e6, 2.0))
    second = report("m@2", candidate("int8b", 1.3e6, 2.0), candidate("source", 2.6e6, 1.0))
    ((found,), missing) = find_all(first, second, Rules())
    assert (found.finding.relation, missing) == (Relation.SAME, {})
    assert "same baseline" in found.way


def test_a_true_change_is_seen_over_the_common_baseline() -> None:
    ((found,), _) = find_all(report("m@1", candidate("int8", 1e6, 2.0)), report("m@2", candidate("b", 1e6, 1.8)), Rules(max_slowdown=0.02))
    assert (found.finding.relation, found.finding.slowdown) == (Relation.SLOWER, Gate.BEYOND)


def test_without_a_common_baseline_small_differences_are_not_told() -> None:
    second = report("m@2", candidate("b", 1.03e6, 2.0), candidate("other", 2e6, 1.0))
    ((found,), _) = find_all(report("m@1", candidate("a", 1e6, 2.0)), second, Rules())
    assert found.finding.relation is Relation.INCONCLUSIVE
    assert "unpaired" in found.finding.reason
    assert "controller compare m@1:winner m@2:winner" in found.finding.reason
    second = report("m@2", candidate("b", 1.2e6, 2.0), candidate("other", 2e6, 1.0))
    ((found,), _) = find_all(report("m@1", candidate("a", 1e6, 2.0)), second, Rules())
    assert found.finding.relation is Relation.SLOWER


def test_the_baseline_that_won_is_its_own_measure() -> None:
    base = candidate("source", 2e6, 1.0)
    ((found,), _) = find_all(report("m@1", base, base), report("m@2", candidate("int8", 1e6, 2.0)), Rules())
    assert found.finding.relation is Relation.FASTER
    assert found.finding.ratio is not None
    assert found.finding.ratio.value == pytest.approx(2.0)


@pytest.mark.parametrize("spoil", ["verdict", "winner", "interval"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_doubtful_run_decides_nothing(spoil: str, which: int) -> None:
    runs = [report("m@1", candidate("a", 1e6, 2.0)), report("m@2", candidate("b", 5e5, 4.0))]
    device = runs[which]["devices"][0]
    if spoil == "winner":
        device["winner"] = None
    elif spoil == "verdict":
        device["winner"]["verdict"] = "throttled"
    else:
        device["winner"]["latency_ns"]["p50"]["ci95"] = None
    ((found,), _) = find_all(runs[0], runs[1], Rules(max_slowdown=0.02))
    assert (found.finding.relation, found.finding.slowdown) == (Relation.INCONCLUSIVE, Gate.UNKNOWN)
    assert f"m@{which + 1}" in found.finding.reason


def test_versions_and_conditions_that_differ_are_said() -> None:
    second = report("m@2", candidate("b", 1e6, 2.0))
    second["edgefarm_version"] = "0.2.0"
    device = second["devices"][0]
    device["class"], device["fingerprint"]["runtimes"]["onnxruntime"] = "c2", "1.33"
    device["winner"]["conditions"]["settings"]["governor"] = "powersave"
    ((found,), _) = find_all(report("m@1", candidate("a", 1e6, 2.0)), second, Rules())
    said = "; ".join(found.differs)
    for part in ("edgefarm 0.1.0 and 0.2.0", "runtimes.onnxruntime: 1.32 and 1.33", "governor: performance and powersave", "c1 and c2"):
        assert part in said
    assert "unpaired" in found.way


def test_devices_of_one_run_only_are_lost() -> None:
    second = report("m@2", candidate("b", 1e6, 2.0))
    second["devices"][0]["name"] = "bench-2"
    found, missing = find_all(report("m@1", candidate("a", 1e6, 2.0)), second, Rules())
    assert found == []
    assert missing == {"bench-1": "not in m@2", "bench-2": "not in m@1"}
    ended = problem([], missing, Rules())
    assert ended is not None
    assert ended.exit_code == 4


def answer(rules: Rules, second: dict[str, Any]) -> dict[str, Any]:
    first = report("m@1", candidate("a<b>", 1e6, 2.0))
    found, missing = find_all(first, second, rules)
    findings = [f.finding for f in found]
    head = document.head("m@1", "m@2", rules, findings, missing, problem(findings, missing, rules))
    return {**head, "devices": [document.stored(f, rules) for f in found]}


LIMITED = Rules(margin=0.02, max_slowdown=0.02)
CASES: dict[str, tuple[dict[str, Any], Rules, int, str, tuple[str, str]]] = {
    "same": (report("m@2", candidate("b", 1e6, 2.0)), LIMITED, 0, "same", ("0", "0")),
    "beyond": (report("m@2", candidate("b", 1e6, 1.8)), LIMITED, 7, "slower", ("1", "0")),
    "unknown": (report("m@2", candidate("b", 1e6, 1.96, 0.02)), LIMITED, 8, "inconclusive", ("0", "1")),
    "no limit": (report("m@2", candidate("b", 1e6, 1.8)), Rules(), 0, "slower", ("0", "0")),
    "no energy": (report("m@2", candidate("b", 1e6, 2.0)), Rules(max_energy=0.03), 8, "same", ("0", "1")),
}


@pytest.mark.parametrize("name", CASES)
def test_every_form_carries_the_answer(name: str) -> None:
    second, rules, code, verdict, (failures, errors) = CASES[name]
    told = answer(rules, copy.deepcopy(second))
    assert (told["exit_code"], told["verdict"]) == (code, verdict)
    jsonschema.validate(told, SCHEMA)
    assert json.loads(forms.as_json(told)) == told
    assert f"\n{verdict}: " in forms.table(told)
    suite = ElementTree.fromstring(forms.as_junit(told))
    assert (suite.tag, suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("testsuite", "1", failures, errors)
    (case,) = suite
    assert (case.tag, case.get("name")) == ("testcase", "bench-1")
    assert {child.tag for child in case} <= {"failure", "error", "system-out"}
    if name == "no energy":
        assert "no power sensor" in told["summary"]


def test_sides_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.onnx").touch()
    assert parse("old.onnx") == FileSide(tmp_path / "old.onnx", "old.onnx")
    assert parse("fashion@3") == RunSide("fashion@3")
    assert parse("fashion@3:int8/3f2a") == RunSide("fashion@3", "int8/3f2a")
    assert both("fashion@3", "fashion@4") == (RunSide("fashion@3"), RunSide("fashion@4"))
    assert both("fashion@3:winner", "old.onnx")[0] == RunSide("fashion@3", "winner")


@pytest.mark.parametrize(
    ("texts", "says"),
    [(("olt.onnx", "old.onnx"), "did you mean 'old.onnx'"), (("fashion@3", "old.onnx"), "fashion@3:winner"),
     (("fashion@3:", "old.onnx"), "no such file, and no run")],
)  # fmt: skip
def test_a_side_that_is_nothing_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: tuple[str, str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.onnx").touch()
    with pytest.raises(UserError, match=says):
        both(*texts)


def test_a_runs_variant_is_the_candidate_that_it_measured() -> None:
    shown = candidate("int8", 1e6, 2.0)
    shown["io"] = {
        "inputs": [{"source": "x", "name": "y", "permutation": [0, 2, 1], "scale": 0.5, "zero_point": 3, "dtype": None}],
        "outputs": [{"source": "o", "name": "p", "permutation": None, "scale": None, "zero_point": None, "dtype": "int64"}],
    }
    digest = f"sha256:{'int8':0>64.64}"
    wanted = Candidate(
        Artifact(digest, 10, "onnx", (FileEntry("m.onnx", digest, 10),)), "onnxruntime", {"threads": 1},
        Io((TensorMap("x", "y", (0, 2, 1), 0.5, 3),), (TensorMap("o", "p", dtype="int64"),)),
    )  # fmt: skip
    assert candidate_of(shown) == wanted
    run = report("m@1", shown)
    for name in ("winner", "int8"):
        assert candidates_of(RunSide("m@1", name), run) == {"bench-1": (wanted, "int8")}
    with pytest.raises(UserError, match="there are: winner, baseline, source, int8"):
        candidates_of(RunSide("m@1", "int4"), run)


def test_only_reports_of_deploy_hold_variants() -> None:
    with pytest.raises(UserError, match="m@1 has no report yet"):
        report_of(RunSide("m@1"), lambda _: {})
    with pytest.raises(UserError, match="m@1 is a comparison"):
        report_of(RunSide("m@1"), lambda _: {"kind": "comparison"})
