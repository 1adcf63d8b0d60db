"""The pipeline with real pass processes: sharing, caching, failures of every kind, cancelling, dying."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from edgefarm import hostlock
from edgefarm.digest import digest_file
from edgefarm.errors import StorageError
from edgefarm.model import Artifact, FailureKind, Stage
from optimizer import passes, pipeline
from optimizer.dataset import Dataset
from optimizer.lineage import LineageStep
from optimizer.pipeline import Event, Failed, Pipeline, PlanOutcome, Skipped, Variant
from optimizer.process import PassReply, PassRequest
from optimizer.recipe import Plan, Step
from optimizer.source import Source, load_source
from tests import models_optimizer as zoo

ROOT = Path(__file__).parents[2]
SAMPLES = Dataset({"x": zoo.images(8)[:, None]})
PROBE = SAMPLES.take(range(2))
STATIC = Plan("static", (Step("graph"), Step("quantize_static")))


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FakePass", "FakeNormaliser", "FakeInteger"):
        label = {"FakePass": "fake", "FakeNormaliser": "fake_normaliser", "FakeInteger": "fake_integer"}[name]
        monkeypatch.setitem(passes.PASSES, label, f"tests.fake_passes:{name}")  # type: ignore[arg-type]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return load_source(zoo.save(zoo.conv_net(), tmp_path / "model" / "m.onnx"))


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Pipeline]:
    made = Pipeline(tmp_path / "cache", workers=2, lock_path=tmp_path / "lock", timeout_s=60)
    yield made
    assert list((tmp_path / "cache" / "work").iterdir()) == []


def fake(how: str, pass_name: str = "fake", **parameters: str) -> Plan:
    return Plan(f"{pass_name}-{how}", (Step(pass_name, {"how": how, **parameters}),))


def run(lines: Pipeline, source: Source, *plans: Plan, events: list[Event] | None = None) -> list[PlanOutcome]:
    return lines.run(source, plans, SAMPLES, PROBE, on_event=(events if events is not None else []).append)


def test_a_plan_becomes_a_variant(lines: Pipeline, source: Source) -> None:
    events: list[Event] = []
    (variant,) = run(lines, source, STATIC, events=events)
    assert isinstance(variant, Variant)
    assert variant.name == f"static/{variant.artifact.digest[7:11]}"
    assert digest_file(variant.main_file) == variant.artifact.digest
    assert (variant.artifact.format, variant.io, variant.plans) == ("onnx", None, (STATIC,))
    (step,) = variant.lineage
    assert (step.parent, step.pass_name, step.changed) == (source.artifact.digest, "quantize_static", "2 of 2 Conv, 1 of 1 Gemm quantised")
    assert step.drift is not None
    assert 0 < step.drift < 0.2
    assert step.parameters["calibration"] == "minmax"
    assert set(step.tool_versions) == {"onnx", "onnxruntime", "onnxslim", "numpy"}
    assert LineageStep.from_json(json.loads(json.dumps(step.as_json()))) == step
    assert [(e.kind, e.pass_name) for e in events] == [
        ("started", "graph"),
        ("unchanged", "graph"),
        ("started", "quantize_static"),
        ("changed", "quantize_static"),
    ]


def test_a_second_run_is_all_hits(lines: Pipeline, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(lines, source, STATIC, fake("copy"), fake("raise"))
    monkeypatch.setattr(pipeline, "run_pass", None)  # any new process would be a TypeError
    events: list[Event] = []
    again = Pipeline(tmp_path / "cache", workers=2, lock_path=tmp_path / "lock", timeout_s=60)
    assert run(again, source, STATIC, fake("copy"), fake("raise"), events=events) == first
    assert all(e.cached for e in events)
    assert len(events) == 4


def test_hits_import_nothing_heavy(lines: Pipeline, source: Source, tmp_path: Path) -> None:
    run(lines, source, STATIC)
    code = f"""
        import sys
        from pathlib import Path
        import tests.unit.test_optimizer_pipeline as t
        from optimizer.pipeline import Pipeline
        from optimizer.source import load_source
        lines = Pipeline(Path({str(tmp_path / "cache")!r}), lock_path=Path({str(tmp_path / "lock")!r}), timeout_s=60)
        heavy = {{"onnx", "onnxruntime", "onnxslim"}} - set(sys.modules)
        outcome = lines.run(load_source(Path({str(source.path)!r})), [t.STATIC], t.SAMPLES, t.PROBE)
        print(type(outcome[0]).__name__, sorted(heavy & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split(maxsplit=1) == ["Variant", "[]\n"]


def test_shared_prefixes_run_once(lines: Pipeline, source: Source, tmp_path: Path) -> None:
    first = Step("fake", {"how": "print", "mark": str(tmp_path / "mark")})
    plans = [Plan("a", (first, Step("convert_float16"))), Plan("b", (first, Step("quantize_dynamic"))), Plan("c", (first,))]
    outcomes = run(lines, source, *plans)
    assert [type(o) for o in outcomes] == [Variant, Variant, Variant]
    assert len((tmp_path / "mark").read_text().splitlines()) == 1
    assert isinstance(outcomes[0], Variant)
    assert [s.pass_name for s in outcomes[0].lineage] == ["fake", "convert_float16"]
    assert outcomes[0].lineage[1].parent == outcomes[2].artifact.digest  # type: ignore[union-attr]


def test_equal_bytes_are_one_variant(lines: Pipeline, source: Source) -> None:
    direct = Plan("direct", (Step("quantize_static"),))
    (variant,) = run(lines, source, STATIC, direct)
    assert isinstance(variant, Variant)
    assert variant.plans == (STATIC, direct)
    assert len(variant.lineages) == 2


FAILURES = {
    "copy": (FailureKind.UNCHANGED, "fake: the same bytes"),
    "raise": (FailureKind.CRASH, "KeyError: 'weights of node 3' (fake_passes.py:"),
    "signal": (FailureKind.CRASH, "ended with signal 11 (SIGSEGV) while running"),
    "exit": (FailureKind.CRASH, "ended with exit code 7 while running"),
    "killed": (FailureKind.OOM, "most likely for lack of memory"),
    "memory": (FailureKind.OOM, "ran out of memory"),
    "refuse": (FailureKind.UNSUPPORTED_OP, "fake: no kernel for Foo"),
    "nothing": (FailureKind.CRASH, "the pass wrote 0 models instead of one"),
    "garbage": (FailureKind.LOAD, "wrote a file that is no model"),
    "nan": (FailureKind.NUMERIC, "output 'logits' holds NaN for probe sample 0"),
    "wrong": (FailureKind.NUMERIC, "relative L2"),
    "rename": (FailureKind.IO_CHANGED, "outputs were ['logits'], are ['renamed']"),
}


@pytest.mark.parametrize("forked", [True, False], ids=["forked", "spawned"])
def test_failures_are_values_and_do_not_end_the_run(source: Source, tmp_path: Path, forked: bool) -> None:
    with ThreadPoolExecutor(2) as mine:
        lines = Pipeline(tmp_path / "cache", 2, None if forked else mine, tmp_path / "lock", timeout_s=60)
        *failed, last = run(lines, source, *map(fake, FAILURES), fake("print"))
    assert isinstance(last, Variant)
    for outcome, (kind, detail) in zip(failed, FAILURES.values()):
        assert isinstance(outcome, Failed)
        assert (outcome.failure.kind, outcome.failure.stage) == (kind, Stage.OPTIMIZE)
        assert detail in outcome.failure.detail


def test_no_integer_left_is_unchanged(lines: Pipeline, source: Source) -> None:
    (failed,) = run(lines, source, fake("print", "fake_integer"))
    assert isinstance(failed, Failed)
    assert failed.failure.kind is FailureKind.UNCHANGED


def test_a_hang_is_stopped(source: Source, tmp_path: Path) -> None:
    lines = Pipeline(tmp_path / "cache", lock_path=tmp_path / "lock", timeout_s=0.5)
    (failed,) = run(lines, source, fake("hang", mark=str(tmp_path / "mark")))
    assert isinstance(failed, Failed)
    assert (failed.failure.kind, failed.failure.detail) == (FailureKind.TIMEOUT, "fake: the pass was stopped after 0.5 s (running)")
    assert not psutil.pid_exists(int((tmp_path / "mark").read_text().split()[0]))


def test_a_timeout_is_believed_for_equal_or_less_time(source: Source, tmp_path: Path) -> None:
    plan = fake("hang", mark=str(tmp_path / "mark"))
    for timeout_s in (0.4, 0.3, 0.4, 0.5):
        run(Pipeline(tmp_path / "cache", lock_path=tmp_path / "lock", timeout_s=timeout_s), source, plan)
    assert len((tmp_path / "mark").read_text().splitlines()) == 2


def test_what_may_end_otherwise_is_tried_again(lines: Pipeline, source: Source, tmp_path: Path) -> None:
    for how, count in (("killed", 2), ("refuse", 1)):
        mark = tmp_path / how
        for _ in range(2):
            run(lines, source, fake(how, mark=str(mark)))
        assert len(mark.read_text().splitlines()) == count


def test_normalisers_are_skipped_or_passed_over(lines: Pipeline, source: Source) -> None:
    chain = Plan("chain", (Step("fake_normaliser", {"how": "raise"}), Step("fake_normaliser", {"how": "copy"}), Step("convert_float16")))
    alone, broken, variant = run(lines, source, fake("copy", "fake_normaliser"), fake("raise", "fake_normaliser"), chain)
    assert isinstance(alone, Skipped)
    assert alone.reason == "fake_normaliser: the same bytes (copy)"
    assert isinstance(broken, Failed)
    assert isinstance(variant, Variant)
    assert [s.pass_name for s in variant.lineage] == ["convert_float16"]


def test_cache_keys(lines: Pipeline, source: Source, tmp_path: Path) -> None:
    def count(samples: Dataset, probe: Dataset, plan: Plan) -> int:
        events: list[Event] = []
        lines.run(source, [plan], samples, probe, on_event=events.append)
        return sum(e.kind == "started" for e in events)

    static, half = Plan("s", (Step("quantize_static"),)), Plan("h", (Step("convert_float16"),))
    other = Dataset({"x": zoo.images(8, seed=1)[:, None]})
    with_targets = Dataset(SAMPLES.inputs, {"t": zoo.images(8)})
    assert [count(SAMPLES, PROBE, static), count(with_targets, PROBE, static), count(other, PROBE, static)] == [1, 0, 1]
    assert [count(SAMPLES, PROBE, half), count(other, PROBE, half), count(SAMPLES, other, half)] == [1, 0, 1]
    assert count(SAMPLES, PROBE, Plan("s", (Step("quantize_static", {"per_channel": True}),))) == 1


@pytest.mark.parametrize("damage", ["content", "size", "missing", "folder", "entry", "half"])
def test_a_damaged_cache_is_not_believed(lines: Pipeline, source: Source, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def instead(request: PassRequest, start: object) -> PassReply:
        out = Path(request.work_dir) / "out"
        out.mkdir(parents=True)
        zoo.save(zoo.dirty_net(), out / "model.onnx")
        return PassReply("changed", detail="all")

    monkeypatch.setattr(pipeline, "run_pass", instead)
    plan = Plan("h", (Step("convert_float16"),))
    (first,) = run(lines, source, plan)
    assert isinstance(first, Variant)
    if damage in ("content", "size", "missing"):
        content = first.main_file.read_bytes()
        first.main_file.unlink()
        if damage != "missing":
            first.main_file.write_bytes(content[:-1] + (b"\0" if damage == "content" else b""))
    elif damage == "folder":
        first.path.rename(first.path.with_name("elsewhere"))
    else:
        (entry,) = (lines.cache.folder / "steps").iterdir()
        entry.write_bytes(entry.read_bytes()[:40] if damage == "half" else b"{}")
    events: list[Event] = []
    (second,) = run(lines, source, plan, events=events)
    assert isinstance(second, Variant)
    assert second.artifact == first.artifact
    assert digest_file(second.main_file) == second.artifact.digest
    assert [e.kind for e in events] == ["started", "changed"]


def test_cancelling_stops_what_runs(lines: Pipeline, source: Source, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    outcomes = lines.run(source, [fake("hang", mark=str(mark)), fake("copy")], None, None, cancelled=mark.exists)
    assert [o for o in outcomes if isinstance(o, Failed) and "hang" in o.plan.name] == []
    assert not psutil.pid_exists(int(mark.read_text().split()[0]))


def test_an_error_of_the_callback_stops_what_runs(lines: Pipeline, source: Source, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def broken(event: Event) -> None:
        if event.kind != "started":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lines.run(source, [fake("hang", mark=str(mark)), fake("copy")], None, None, on_event=broken)
    assert not mark.exists() or not psutil.pid_exists(int(mark.read_text().split()[0]))


def test_passes_wait_for_a_measuring_device(lines: Pipeline, source: Source, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with ThreadPoolExecutor(1) as pool:
        started = threading.Event()
        with hostlock.hold(exclusive=True, path=tmp_path / "lock"):
            future = pool.submit(lines.run, source, [fake("print", mark=str(mark))], None, PROBE, lambda e: started.set())
            assert started.wait(20)
            assert not _until(mark.exists, seconds=1.5)
        (outcome,) = future.result(60)
    assert isinstance(outcome, Variant)
    assert mark.exists()


def test_a_killed_command_leaves_no_process_and_no_entry(source: Source, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"""
        import tests.unit.test_optimizer_pipeline as t
        from pathlib import Path
        from optimizer import passes
        from optimizer.pipeline import Pipeline
        from optimizer.source import load_source
        passes.PASSES["fake"] = "tests.fake_passes:FakePass"
        lines = Pipeline(Path({str(tmp_path / "cache")!r}), lock_path=Path({str(tmp_path / "lock")!r}))
        lines.run(load_source(Path({str(source.path)!r})), [t.fake("hang", mark={str(mark)!r})])
    """
    command = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT)
    assert _until(lambda: mark.exists() and bool(mark.read_text()), seconds=30)
    children = psutil.Process(command.pid).children(recursive=True)
    assert int(mark.read_text().split()[0]) in [child.pid for child in children]
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    psutil.wait_procs(children, timeout=10)
    assert [child for child in children if child.is_running()] == []
    cache = tmp_path / "cache"
    assert list((cache / "steps").iterdir()) == []
    assert len(list((cache / "work").iterdir())) == 1
    Pipeline(cache, lock_path=tmp_path / "lock").run(source, [])
    assert list((cache / "work").iterdir()) == []


def test_external_data(lines: Pipeline, tmp_path: Path) -> None:
    source = load_source(zoo.save(zoo.conv_net(), tmp_path / "model" / "m.onnx", external=True))
    (variant,) = run(lines, source, STATIC)
    assert isinstance(variant, Variant)
    assert variant.lineage[0].parent == source.artifact.digest
    assert [f.name for f in variant.artifact.files] == ["model.onnx"]


def test_a_callers_executor_is_used_and_left_open(source: Source, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as mine:
        (outcome,) = run(Pipeline(tmp_path / "cache", executor=mine, lock_path=tmp_path / "lock"), source, STATIC)
        assert mine.submit(int, "7").result() == 7
    assert isinstance(outcome, Variant)
    (forked,) = run(Pipeline(tmp_path / "other", lock_path=tmp_path / "lock"), source, STATIC)
    assert isinstance(forked, Variant)
    assert forked.artifact == outcome.artifact


def test_a_full_disk_is_a_storage_error(lines: Pipeline, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "run_pass", lambda request, start: PassReply("storage", detail="No space left on device", transient=True))
    with pytest.raises(StorageError, match="No space left on device"):
        run(lines, source, fake("print"))


def test_names_stay_unique() -> None:
    plan = Plan("a", ())
    made = [Variant("", Artifact(f"sha256:abcd{d * 60}", 1, "onnx", ()), Path(), (plan,), ((),)) for d in "12"]
    assert [o.name for o in pipeline._merged(made) if isinstance(o, Variant)] == ["a/abcd", "a/abcd2"]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="the cache of the optimizer can't be written"):
        Pipeline(tmp_path / "file" / "cache")


def _until(condition: object, seconds: float) -> bool:
    """Whether another process made `condition` true in time."""
    assert callable(condition)
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        if time.monotonic() > end:
            return False
        pause.wait(0.02)
    return True
