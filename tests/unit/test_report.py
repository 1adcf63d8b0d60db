"""The report keeps its promise to programs: the schema, nulls with reasons, and every form."""

from __future__ import annotations

import csv
import html
import io
import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

import agent.cli
import controller.report
from controller.evidence import Entry, Evidence
from controller.report import FORMS, DeviceResult, build, caveat, render
from controller.report.candidate import Origin, candidate
from controller.report.document import OptimizeFailure
from controller.selection import Judgement, choose
from edgefarm.model import (
    Artifact,
    Capability,
    DeploymentState,
    DeploymentStatus,
    Device,
    DeviceStatus,
    Failure,
    FailureKind,
    Run,
    Stage,
)
from tests.fakes.world import FakeWorld, Truth, make_group

SCHEMA = json.loads((Path(controller.report.__file__).parent / "schema.json").read_text())
TRUTHS = (
    Truth("source", 1_000_000, 0.92, 2_800_000),
    Truth("int8-static", 400_000, 0.918, 750_000),
    Truth("lossy<b>", 300_000, 0.5, 750_000),
    Truth("slow", 9_000_000, 0.92, 750_000),
    Truth("crashing", 1, failure=FailureKind.CRASH),
)
DIGEST = "sha256:" + "0" * 64


def hexed(report: Any) -> Any:
    """FakeWorld's digests are readable names; the schema wants hex digits."""
    text = json.dumps(report)
    for truth in TRUTHS:
        text = text.replace(json.dumps(f"sha256:{truth.name:0>64.64}")[1:-1], DIGEST)
    return json.loads(text)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    world, group = FakeWorld(TRUTHS), make_group(TRUTHS)
    evidence = world.run(group)
    choice = choose(group, evidence, "d1")
    assert choice.winner is not None
    device = Device("d1", "id", "boot", {"board": "x"}, {"cpu": "y"}, (Capability("onnxruntime", "CPU", "1.20", True),), 1)
    deployment = DeploymentStatus("i", "d1", "m", 1, DeploymentState.COMMITTED, DIGEST, "/models/m/current/model.onnx")
    good = DeviceResult(DeviceStatus(device, "c1", "ready"), group, evidence, choice, deployment)
    lost = DeviceResult(DeviceStatus(device, "c1", "lost"), group, evidence, None, lost="no sign of life for 90 s")
    run = Run("world@1", "world", 1, DIGEST, "{}", "done", "ann", {"git": "abc"}, 1_000_000, 2_000_000, 0)
    not_built = [OptimizeFailure("int8-dynamic", Failure(FailureKind.UNCHANGED, "no integer node", Stage.OPTIMIZE))]
    lineage = [{"pass": "quantize_static", "parameters": {"per_channel": True}, "seconds": 1.5, "changed": "13 of 14 Conv"}]
    origins = {choice.winner.candidate.artifact.digest: Origin(lineage, "/variants/a b/model.onnx")}
    document = build(run, "m", group.baseline.candidate.artifact, [good, lost], origins, not_built, summary="s", phases={"measure": 1.0})
    loaded: dict[str, Any] = hexed(document)
    return loaded


@pytest.mark.parametrize(
    ("spec", "note"),
    [
        ({"exported": {"from": "net.py:build", "fixed": False}}, "the baseline is the plain float conversion of net.py:build to ONNX"),
        (
            {"bench": {}, "fleet": {"exported": {"from": "net.py:build", "fixed": True}}},
            "the baseline is the plain float conversion of net.py:build to ONNX; its inputs have the sizes of the example, since their "
            "first axes could not be left open",
        ),
    ],
)
def test_a_source_that_was_exported_is_told(spec: dict[str, Any], note: str) -> None:
    run = Run("world@1", "world", 1, DIGEST, json.dumps(spec), "done")
    document = build(run, "m", Artifact(DIGEST, 9, "onnx", ()), [], {}, [], summary="s", phases={}, notes=["another"])
    jsonschema.validate(document, SCHEMA)
    assert document["model"]["exported_from"] == "net.py:build"
    assert document["notes"] == [note, "another"]


def test_the_document_fits_its_schema(report: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(report, SCHEMA)


def test_the_schema_refuses_what_was_never_promised(report: dict[str, Any]) -> None:
    for path, value in (
        (("devices", 0, "winner", "verdict"), "splendid"),
        (("model", "digest"), "md5:1"),
        (("devices", 0, "winner", "artifact"), None),
    ):
        broken = json.loads(json.dumps(report))
        place = broken
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA)


def test_what_was_not_measured_is_null_with_its_reason(report: dict[str, Any]) -> None:
    device = report["devices"][0]
    by_name = {c["variant"]: c for c in device["candidates"]}
    assert by_name["slow"]["latency_ns"] is None
    assert "slower than the baseline" in by_name["slow"]["unavailable"]["latency_ns"]
    assert by_name["slow"]["screening"]["speedup"] == pytest.approx(1 / 9, rel=0.1)
    assert by_name["crashing"]["rejected"] == "failed: crash: as told"
    for one in device["candidates"]:
        assert list(without_reason(one)) == [], one["variant"]
        assert [n for n in one["unavailable"] if one.get(n) is not None] == [], "a reason for what is there"
    assert device["winner"]["reproduce"] == "edge-agent bench '/variants/a b/model.onnx' --runtime onnxruntime --threads 1"
    assert {f["kind"] for f in device["failures"]} == {"UNCHANGED", "CRASH"}
    assert report["devices"][1]["winner"] is None
    assert report["devices"][1]["reason"] == "no sign of life for 90 s"


# Null says something of its own there: like the source; not rejected; the samples suffice.
NULL_IS_A_VALUE = {"io", "rejected", "samples_needed"}


def without_reason(value: dict[str, Any], place: tuple[str, ...] = (), reasons: dict[str, str] | None = None) -> Iterator[str]:
    """Dotted names of what is null without a reason in `unavailable`, for itself or for what it is part of."""
    reasons = value["unavailable"] if reasons is None else reasons
    for name, part in value.items():
        here = (*place, name)
        if isinstance(part, dict) and name not in ("unavailable", "conditions", "options"):
            yield from without_reason(part, here, reasons)
        elif part is None and name not in NULL_IS_A_VALUE and ".".join(here) not in reasons:
            yield ".".join(here)


def one_launch(evidence: Evidence) -> Evidence:
    return replace(evidence, launches={k: v[:1] for k, v in evidence.launches.items()})


def not_finite(evidence: Evidence) -> Evidence:
    nan = {k: replace(s.selection, value=float("nan"), difference=None) for k, s in evidence.scores.items()}
    return replace(evidence, scores={k: replace(s, evaluation=nan[k], selection=nan[k]) for k, s in evidence.scores.items()})


@pytest.mark.parametrize("known", [lambda e: e, one_launch, not_finite, lambda _: Evidence()])
def test_every_null_has_a_reason_whatever_is_known(known: Callable[[Evidence], Evidence]) -> None:
    world, group = FakeWorld(TRUTHS), make_group(TRUTHS)
    evidence = known(world.run(group))
    for judgement in choose(group, evidence, "d1").judgements:
        document = candidate(judgement, group, evidence, Origin(), "d1")
        assert list(without_reason(document)) == [], judgement.entry.variant
        jsonschema.validate(hexed(document), {**SCHEMA["$defs"]["candidate"], "$defs": SCHEMA["$defs"]})


def test_where_a_candidate_was_measured_is_one_name_and_all_of_them() -> None:
    world, group = FakeWorld(TRUTHS), make_group(TRUTHS)
    evidence = world.run(group)
    winner = choose(group, evidence, "d1").winner
    assert winner is not None
    first, second, *others = evidence.launches[winner.key]
    shared = replace(evidence, launches={**evidence.launches, winner.key: (replace(first, device="d9"), second, *others)})
    judgement = choose(group, shared, "d1").judgement(winner.key)
    document = candidate(judgement, group, shared, Origin(), "d1")
    assert (document["measured_on"], document["measured_on_all"]) == ("d9", ["d1", "d9"])


def test_reproduce_carries_every_option_to_the_agents_command() -> None:
    group = make_group(TRUTHS)
    options = {"threads": 2, "execution_provider": "CPUExecutionProvider", "session.spin": False, "delegate": "a b", "level": 3}
    entry = Entry(replace(group.entries[1].candidate, options=options), "v")
    told = candidate(Judgement(entry, True, ""), group, Evidence(), Origin((), "/variants/a b/model.onnx"), "d1")["reproduce"]
    program, *arguments = shlex.split(told)
    assert program == "edge-agent"
    parsed = agent.cli._parser().parse_args(arguments)
    assert (parsed.verb, parsed.model, parsed.runtime) == ("bench", Path("/variants/a b/model.onnx"), "onnxruntime")
    assert {**dict(parsed.option), "threads": parsed.threads} == options


@pytest.mark.parametrize("form", FORMS)
def test_every_form_names_winner_and_loss(report: dict[str, Any], form: str) -> None:
    text = render(report, form)
    assert "int8-static" in text
    assert "no sign of life" in text or form == "csv"
    assert "lossy<b>" not in text or form not in ("html", "junit")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_that_a_device_is_emulated(report: dict[str, Any], form: str) -> None:
    assert "emula" not in render(report, form).replace('"emulated": false', "").replace(",emulated,", "")
    device = Device("d1", "id", "boot", {}, {"emulated": "by <qemu>\x1b"}, emulated=True)
    first = {**report["devices"][0], "emulated": True, "caveat": caveat(device)}
    text = html.unescape(render({**report, "devices": [first, report["devices"][1]]}, form, 300))
    said = "emulated (by <qemu>): its times and memory are no real device's"
    assert said in text or (form == "csv" and {r["emulated"] for r in csv.DictReader(io.StringIO(text))} == {"True"})


def test_an_older_report_has_no_caveat(report: dict[str, Any]) -> None:
    older = {**report, "devices": [{k: v for k, v in d.items() if k != "caveat"} for d in report["devices"]]}
    jsonschema.validate(older, SCHEMA)
    assert all(render(older, form) == render(report, form) for form in FORMS if form != "json")


def test_forms_for_programs_can_be_read(report: dict[str, Any]) -> None:
    assert json.loads(render(report, "json")) == report
    rows = list(csv.DictReader(io.StringIO(render(report, "csv"))))
    assert [r["variant"] for r in rows if r["winner"] == "True"] == ["int8-static"]
    assert float(next(r for r in rows if r["winner"] == "True")["speedup"]) == pytest.approx(2.5, rel=0.1)
    suite = ElementTree.fromstring(render(report, "junit"))
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
