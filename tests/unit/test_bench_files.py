"""Given files are all measured, none is dropped, and what can't be believed is taken again; which candidate stands for a side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller.bench import judge, next_step, problem
from controller.compare.pairing import Given, pair
from controller.config.fleet import Target
from controller.config.schema import Constraints
from controller.evidence import CONTROL, Entry, Group
from controller.fleetplan import Build, Unable
from controller.planner import CONTENDERS
from controller.report import DeviceResult
from controller.selection import Choice
from edgefarm.model import (
    AccuracyResult,
    AccuracyWork,
    Artifact,
    Candidate,
    Conditions,
    Device,
    DeviceStatus,
    EnergyWork,
    Failure,
    FailureKind,
    FileEntry,
    LatencyWork,
    MemoryResult,
    MemoryWork,
    Order,
    OrderState,
    OrderStatus,
    Outcome,
)
from edgefarm.statistics.sequential import PLANNED
from tests.fakes.comparing import Answering
from tests.fakes.world import Truth, make_group

STATUS = DeviceStatus(Device("d1", "id", "boot"), "c1", "ready")


class Passing(Answering):
    """Answers memory and accuracy too."""

    def answer(self, order: Order) -> None:
        work, told = order.work, None
        if isinstance(work, MemoryWork):
            told = MemoryResult(work.contender.key, 2, 2, 1, 1)
        elif isinstance(work, AccuracyWork):
            told = AccuracyResult(work.contender.key, "sha256:o", "sha256:g", 4)
        if told is None:
            super().answer(order)
            return
        outcome: Outcome = told
        self.orders[order.id] = OrderStatus(order, OrderState.DONE, "d1", (self._attempt(order, 0, outcome),))


def group_of(count: int, **changes: Any) -> Group:
    return make_group([Truth(f"m{i}", 1_000_000) for i in range(count)], constraints={}, **changes)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_every_file_is_measured_beside_the_fleets_model_and_its_copy(count: int) -> None:
    group, answering = group_of(count), Passing(1.2)
    evidence = answering.run(group, next_step)
    works = [s.order.work for s in answering.orders.values()]
    latencies = [w for w in works if isinstance(w, LatencyWork)]
    for work in latencies:
        keys = [c.key for c in work.contenders]
        assert (keys[0], keys[-1], len(keys) <= CONTENDERS) == (group.baseline.key, CONTROL, True)
    assert {c.key for w in latencies for c in w.contenders} == {e.key for e in group.entries} | {CONTROL}
    assert sorted(w.contender.key for w in works if isinstance(w, MemoryWork)) == sorted(e.key for e in group.entries)
    for shards in (group.evaluation.selection, group.evaluation.report):
        ran = [w.contender.key for w in works if isinstance(w, AccuracyWork) and w.shards == shards]
        assert sorted(ran) == sorted(e.key for e in group.entries)
    assert not any(isinstance(w, EnergyWork) for w in works)
    for entry in group.entries[1:]:
        judged = judge(group, entry, evidence)
        assert (judged.rejected, judged.feasible) == ("", True)
        assert judged.speedup is not None
        assert judged.speedup.value == pytest.approx(1.2, rel=0.02)


def test_what_cannot_be_believed_is_taken_again_once() -> None:
    calm, throttled = Passing(1.2), Passing(1.2, conditions=Conditions(throttled=("thermal",)))
    for answering, launches in ((calm, PLANNED), (throttled, 2 * PLANNED)):
        answering.run(group_of(2), next_step)
        taken = [len(s.order.work.launches) for s in answering.orders.values() if isinstance(s.order.work, LatencyWork)]
        assert sum(taken) == launches


def test_devices_with_a_sensor_measure_energy() -> None:
    step = next_step(replace(group_of(2), power=True), Passing().run(group_of(2), next_step))
    assert {type(o.work) for o in step.orders} == {EnergyWork}


def result(answering: Passing, group: Group) -> DeviceResult:
    evidence = answering.run(group, next_step)
    judgements = tuple(judge(group, e, evidence) for e in group.entries)
    return DeviceResult(STATUS, group, evidence, Choice("d1", None, "measured", judgements))


def test_exit_codes() -> None:
    group = group_of(2)
    crashing = Passing(fails={group.entries[1].key: Failure(FailureKind.CRASH, "boom")})
    failed = problem([result(crashing, group)], {}, 0.0)
    lost = problem([result(Passing(), group)], {"d2": "gone"}, 0.0)
    doubted = problem([result(Passing(conditions=Conditions(throttled=("thermal",))), group)], {}, 0.0)
    assert [p.exit_code if p else 0 for p in (failed, lost, doubted)] == [3, 4, 8]
    assert "crash: boom" in str(failed)
    assert problem([result(Passing(), group)], {"d2": "gone"}, 0.5) is None


def artifact(name: str, model_format: str = "onnx") -> Artifact:
    digest = f"sha256:{name:0>64.64}"
    return Artifact(digest, 10, model_format, (FileEntry(f"m.{model_format}", digest, 10),))


TARGET = Target("d1", ("onnxruntime", "openvino", "tflite"), 1, (1,), {}, "latency_p50", Constraints())


def grouped(first: Build, second: Build, device: tuple[Target, DeviceStatus]) -> Group:
    """What a device offers that runs .onnx in two runtimes and .tflite in one."""
    runtimes = {"onnx": ("onnxruntime", "openvino"), "tflite": ("tflite",)}
    entries = [Entry(Candidate(b.artifact, r, {"threads": 1}, b.io), b.name) for b in (first, second) for r in runtimes[b.artifact.format]]
    return replace(group_of(1), entries=tuple({e.key: e for e in entries}.values()))


def build(name: str, model_format: str = "onnx") -> Given:
    return Given(name, anywhere=Build(artifact(name, model_format), name))


def chosen(base: Given, new: Given) -> list[tuple[str, str]]:
    found = pair(base, new, (TARGET, STATUS), grouped)
    assert isinstance(found, Group), found
    return [(e.variant, e.candidate.runtime) for e in found.entries]


def test_both_sides_run_alike_where_they_can() -> None:
    assert chosen(build("a"), build("b")) == [("a", "onnxruntime"), ("b", "onnxruntime")]
    assert chosen(build("a"), build("t", "tflite")) == [("a", "onnxruntime"), ("t", "tflite")]
    assert chosen(build("a"), build("a")) == [("a", "onnxruntime"), ("a", "onnxruntime")]


def test_a_runs_variant_is_compared_as_it_ran_there() -> None:
    ran = Given("m@1:winner", by_device={"d1": (Candidate(artifact("a"), "openvino", {"threads": 1}), "int8")})
    assert chosen(ran, build("b")) == [("m@1:winner", "openvino"), ("b", "openvino")]
    assert chosen(build("b"), ran) == [("b", "onnxruntime"), ("m@1:winner", "openvino")]
    elsewhere = Given("m@1:winner", by_device={"d2": (Candidate(artifact("a"), "openvino"), "int8")})
    assert "has no such variant on d1" in str(pair(elsewhere, build("b"), (TARGET, STATUS), grouped))


def test_what_a_device_cannot_run_is_said() -> None:
    said = pair(build("a"), build("b"), (TARGET, STATUS), lambda *_: Unable(STATUS, "it cannot run the source"))
    assert said == "it cannot run the source"
    without = pair(build("a"), build("b"), (TARGET, STATUS), lambda first, second, device: grouped(first, first, device))
    assert without == "no runtime of d1 opens b (onnx)"
