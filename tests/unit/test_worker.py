from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent.activation import Activation
from agent.bench.site import Measured
from agent.cache import Cache
from agent.journal import Journal
from agent.metrics import Counters
from agent.outbox import Outbox
from agent.slots import Slots
from agent.transfer import Cancelled, Transfers
from agent.worker import Worker
from edgefarm import __version__
from edgefarm.digest import digest_bytes
from edgefarm.errors import Denied, DigestMismatch, NotFound, QuotaExceeded, Unreachable
from edgefarm.model import (
    AccuracyResult,
    AccuracyWork,
    Ack,
    AgentBody,
    Artifact,
    Attempt,
    Candidate,
    Conditions,
    Contender,
    ContenderResult,
    Deployment,
    DeploymentState,
    DeploymentStatus,
    Failure,
    FailureKind,
    FileEntry,
    Golden,
    LatencyResult,
    LatencyWork,
    Limits,
    MemoryResult,
    MemoryWork,
    Order,
    OrderEnded,
    Scenario,
    Stage,
)

MODEL, SHARD, GOLDEN = b"model", b"shard", b"golden"
MODEL_DIGEST, SHARD_DIGEST, GOLDEN_DIGEST = digest_bytes(MODEL), digest_bytes(SHARD), digest_bytes(GOLDEN)
CANDIDATE = Candidate(Artifact(MODEL_DIGEST, len(MODEL), "onnx", (FileEntry("net.onnx", MODEL_DIGEST, len(MODEL)),)), "onnxruntime")
CONTENDER = Contender(CANDIDATE.key, CANDIDATE)


def latency(order: str, *launches: int, **limits: int) -> Order:
    work = LatencyWork((CONTENDER,), Scenario(), SHARD_DIGEST, launches or (0,))
    return Order(order, "run", "net", "class", work, limits=Limits(**limits))


class FakeIncoming:
    def __init__(self, chunks: Iterator[tuple[bytes, int]]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        return self._chunks

    def cancel(self) -> None:
        pass


class FakeRemote:
    """The controller's artifacts, in memory. `fail`: digest -> error of every fetch of it; `push_errors`: errors of the next pushes."""

    def __init__(self) -> None:
        self.blobs = {digest_bytes(b): b for b in (MODEL, SHARD, GOLDEN)}
        self.fail: dict[str, Exception] = {}
        self.push_errors: list[Exception] = []
        self.fetched: list[str] = []
        self.on_fetch: Callable[[str], None] = lambda digest: None

    def stat(self, digest: str, timeout_s: float) -> tuple[bool, int]:
        return digest in self.blobs, len(self.blobs.get(digest, b""))

    def fetch(self, digest: str, offset: int, timeout_s: float) -> FakeIncoming:
        self.fetched.append(digest)
        self.on_fetch(digest)
        return FakeIncoming(self._chunks(digest, offset))

    def _chunks(self, digest: str, offset: int) -> Iterator[tuple[bytes, int]]:
        if digest in self.fail:
            raise self.fail[digest]
        if digest not in self.blobs:
            raise NotFound(digest)
        yield self.blobs[digest][offset:], len(self.blobs[digest])

    def push(self, digest: str, total: int, offset: int, chunks: Iterator[bytes], timeout_s: float) -> tuple[bool, int]:
        if self.push_errors:
            raise self.push_errors.pop(0)
        payload = b"".join(chunks)
        assert digest_bytes(payload) == digest
        self.blobs[digest] = payload
        return True, total


class FakeBench:
    """Answers at once; `hold` makes a launch last until it is cancelled or `release` is set."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.measured: list[tuple[str, int]] = []
        self.hold: set[str] = set()
        self.started, self.release = threading.Event(), threading.Event()
        self.outcomes: dict[str, LatencyResult | Failure | Exception] = {}
        self.golden_failure: Failure | None = None
        self.waited_ns = 0

    def measure(
        self, order: Order, index: int, models: Mapping[str, Path], inputs: Sequence[Path], cancelled: Callable[[], bool]
    ) -> Measured:
        assert [p.read_bytes() for p in models.values()] == [MODEL]
        assert all(p.name == "net.onnx" for p in models.values())
        assert [p.read_bytes() for p in inputs] == [SHARD]
        self.measured.append((order.id, index))
        if order.id in self.hold:
            self.started.set()
            while not self.release.wait(0.01):
                if cancelled():
                    raise Cancelled
        planned = self.outcomes.get(order.id)
        if isinstance(planned, Exception):
            raise planned
        if planned is not None:
            return Measured(planned, Conditions())
        if isinstance(order.work, LatencyWork):
            result = LatencyResult((ContenderResult(CANDIDATE.key, 1, 1.0),))
            return Measured(result, Conditions(), {"samples": self.file(f"samples {order.id} {index}")}, 5, self.waited_ns)
        if isinstance(order.work, MemoryWork):
            return Measured(MemoryResult(CANDIDATE.key, 4, 3, 2, 1), Conditions())
        blobs = {"outputs": self.file("outputs"), "golden": self.file("golden")}
        return Measured(AccuracyResult(CANDIDATE.key, "", "", 1), Conditions(), blobs)

    def golden(self, candidate: Candidate, model: Path, pack: Path, golden: Golden, cancelled: Callable[[], bool]) -> Failure | None:
        assert model.read_bytes() == MODEL
        assert pack.read_bytes() == GOLDEN
        return self.golden_failure

    def file(self, text: str) -> Path:
        path = self.scratch / text.replace(" ", "-")
        path.write_text(text)
        return path


class Agent:
    """A worker with fakes around it, and everything that it said."""

    def __init__(self, folder: Path) -> None:
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
        self.remote, self.bench, self.attached = FakeRemote(), FakeBench(scratch), threading.Event()
        self.said: list[AgentBody] = []
        self.failed: list[BaseException] = []
        self.acknowledge = True
        self.unix_ms = 0  # the device's clock; 0: the machine's
        self.paused, self.beats = False, threading.Semaphore(0)
        self._changed = threading.Condition()
        self.cache, self.journal, self.counters = Cache(folder / "cache", 1 << 20), Journal(folder / "journal"), Counters()
        transfers = Transfers(self.remote, self.cache, self.attached, self.counters, folder / "lock")
        self.outbox = Outbox(self.journal, self.cache, transfers, self.send)
        self.slots = Slots(folder / "models", "dev")
        activation = Activation("dev", self.slots, self.cache, transfers, self.bench, self.send, self.counters)
        self.worker = Worker(
            "dev", self.bench, self.cache, transfers, self.outbox, activation, scratch, self.counters, self.note_failure,
            paused=lambda: self.paused, alive=self.beats.release, wall=lambda: self.unix_ms or time.time_ns() // 10**6,
        )  # fmt: skip
        self.attach()
        self.worker.start()

    def attach(self) -> None:
        self.attached.set()
        self.worker.attached()

    def note_failure(self, error: BaseException) -> None:
        with self._changed:
            self.failed.append(error)
            self._changed.notify_all()

    def send(self, body: AgentBody) -> bool:
        if not self.attached.is_set():
            return False
        with self._changed:
            self.said.append(body)
            self._changed.notify_all()
        if self.acknowledge and isinstance(body, Attempt):
            self.outbox.acknowledge(Ack(body.order, body.index))
        return True

    def wait(self, condition: Callable[[list[AgentBody]], bool]) -> list[AgentBody]:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.said), 20), self.said
            return list(self.said)

    def wait_ended(self, *orders: str) -> list[AgentBody]:
        return self.wait(lambda said: {b.order for b in said if isinstance(b, OrderEnded)} >= set(orders))

    def attempts(self) -> list[Attempt]:
        return [b for b in self.said if isinstance(b, Attempt)]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path)
    yield made
    made.worker.stop()


def test_an_order_from_its_fetch_to_its_end(agent: Agent) -> None:
    agent.worker.order(latency("o", 3, 1))
    said = agent.wait_ended("o")
    assert [(type(b).__name__, getattr(b, "index", None)) for b in said] == [("Attempt", 3), ("Attempt", 1), ("OrderEnded", None)]
    assert said[-1] == OrderEnded("o", cancelled=False)
    outcome = agent.attempts()[0].outcome
    assert isinstance(outcome, LatencyResult)
    assert agent.remote.blobs[outcome.samples] == b"samples o 3"  # stored before the attempt was sent
    assert sorted(agent.remote.fetched) == sorted([MODEL_DIGEST, SHARD_DIGEST])
    assert agent.journal.attempts() == ()
    assert agent.worker.open_orders() == ()
    assert {outcome: n for outcome, n in agent.counters.snapshot()[0].items() if n} == {"ok": 2}


def test_an_attempt_begins_when_the_host_is_its_own(agent: Agent) -> None:
    agent.bench.waited_ns = 10**15
    before_ms = time.time_ns() // 10**6
    agent.worker.order(latency("o"))
    agent.wait_ended("o")
    (attempt,) = agent.attempts()
    assert before_ms + 10**9 <= attempt.started_unix_ms <= time.time_ns() // 10**6 + 10**9
    assert attempt.duration_ns == 5


def test_while_paused_no_launch_begins_but_the_one_that_runs_ends(agent: Agent) -> None:
    agent.bench.hold.add("o")
    agent.worker.order(latency("o", 0, 1))
    assert agent.bench.started.wait(20)
    agent.paused = True
    agent.bench.release.set()
    agent.wait(lambda said: any(isinstance(b, Attempt) for b in said))
    agent.worker.deploy(deployment(1))  # still done: and the worker looked at its orders before it
    agent.wait(lambda said: any(isinstance(b, DeploymentStatus) and b.state is DeploymentState.COMMITTED for b in said))
    assert agent.bench.measured == [("o", 0)]
    assert agent.worker.open_orders() == ("o",)  # until the controller knows why, it is kept
    agent.paused = False
    agent.worker.wake()
    agent.wait_ended("o")
    assert agent.bench.measured == [("o", 0), ("o", 1)]


def test_a_paused_agent_gives_its_orders_back_once_it_has_told_why(agent: Agent) -> None:
    agent.bench.hold.add("o")
    agent.worker.order(latency("o", 0, 1))
    agent.worker.order(latency("p"))
    assert agent.bench.started.wait(20)
    agent.paused = True
    agent.worker.beat(paused=True)
    assert agent.worker.open_orders() == ("o", "p")  # a launch that runs ends
    agent.bench.release.set()
    said = agent.wait_ended("o", "p")
    assert [b for b in said if isinstance(b, OrderEnded)] == [OrderEnded("o", cancelled=True), OrderEnded("p", cancelled=True)]
    assert [(a.order, a.index) for a in agent.attempts()] == [("o", 0)]
    agent.worker.order(latency("q"))  # crossed the heartbeat
    agent.wait_ended("q")
    agent.paused = False
    agent.worker.beat(paused=False)
    agent.worker.order(latency("o", 1))
    agent.wait(lambda said: sum(isinstance(b, OrderEnded) and b.order == "o" for b in said) == 2)
    assert agent.bench.measured == [("o", 0), ("o", 1)]


@pytest.fixture
def greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC0")
    yield
    monkeypatch.undo()
    time.tzset()


NOON_MS = 1_782_907_200_000  # 2026-07-01 12:00 UTC


@pytest.mark.usefixtures("greenwich")
def test_outside_of_its_window_an_order_goes_back_and_others_are_measured(agent: Agent) -> None:
    agent.unix_ms = NOON_MS
    agent.worker.order(replace(latency("night"), window="22:00-05:00"))
    agent.worker.order(latency("any"))
    agent.worker.order(replace(latency("day"), window="12:00-12:01"))
    said = agent.wait_ended("night", "any", "day")
    assert OrderEnded("night", cancelled=True, local_s=43_200) in said
    assert OrderEnded("any", cancelled=False) in said
    assert sorted(agent.bench.measured) == [("any", 0), ("day", 0)]


@pytest.mark.usefixtures("greenwich")
def test_when_the_window_closes_the_launch_that_runs_ends_and_the_rest_goes_back(agent: Agent) -> None:
    agent.unix_ms = NOON_MS
    agent.bench.hold.add("o")
    agent.worker.order(replace(latency("o", 0, 1), window="11:00-12:30"))
    assert agent.bench.started.wait(20)
    agent.unix_ms = NOON_MS + 30 * 60_000
    agent.bench.release.set()
    said = agent.wait_ended("o")
    assert [(a.order, a.index) for a in agent.attempts()] == [("o", 0)]
    assert said[-1] == OrderEnded("o", cancelled=True, local_s=45_000)


@pytest.mark.parametrize(("window", "unix_ms"), [("00:00-24:00", 1_000), ("midnight", NOON_MS)])
def test_who_knows_no_time_or_reads_no_window_measures_nothing_that_has_one(agent: Agent, window: str, unix_ms: int) -> None:
    agent.unix_ms = unix_ms
    agent.worker.order(replace(latency("o"), window=window))
    (ended,) = [b for b in agent.wait_ended("o") if isinstance(b, OrderEnded)]
    assert ended.cancelled
    assert agent.bench.measured == []


def test_a_paused_agent_gives_up_an_order_that_is_cancelled(agent: Agent) -> None:
    agent.paused = True
    agent.worker.order(latency("o"))
    agent.worker.cancel("o")
    assert agent.wait_ended("o")[-1] == OrderEnded("o", cancelled=True)
    assert agent.bench.measured == []


def test_results_that_cannot_be_kept_are_not_left_behind(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device", "cache")

    monkeypatch.setattr(agent.cache, "put_file", full)
    agent.worker.order(latency("o"))
    agent.wait_ended("o")
    (attempt,) = agent.attempts()
    assert isinstance(attempt.outcome, Failure)
    assert "No space left on device" in attempt.outcome.detail
    assert list(agent.bench.scratch.iterdir()) == []


def test_it_shows_signs_of_life_while_a_launch_lasts(agent: Agent) -> None:
    agent.bench.hold.add("o")
    agent.worker.order(latency("o"))
    assert agent.bench.started.wait(20)
    while agent.beats.acquire(blocking=False):
        pass
    assert agent.beats.acquire(timeout=20)
    assert agent.beats.acquire(timeout=20)
    agent.bench.release.set()
    agent.wait_ended("o")


def test_the_other_kinds_of_work(agent: Agent) -> None:
    agent.worker.order(replace(latency("m"), work=MemoryWork(CONTENDER, SHARD_DIGEST)))
    agent.worker.order(replace(latency("a"), work=AccuracyWork(CONTENDER, (SHARD_DIGEST,))))
    agent.wait_ended("m", "a")
    memory, accuracy = (a.outcome for a in agent.attempts())
    assert memory == MemoryResult(CANDIDATE.key, 4, 3, 2, 1)
    assert accuracy == AccuracyResult(CANDIDATE.key, digest_bytes(b"outputs"), digest_bytes(b"golden"), 1)
    assert {digest_bytes(b"outputs"), digest_bytes(b"golden")} <= set(agent.remote.blobs)


def test_an_order_that_comes_twice_takes_effect_once(agent: Agent) -> None:
    agent.bench.hold.add("o")
    agent.worker.order(latency("o", 0, 1))
    assert agent.bench.started.wait(20)
    agent.worker.order(latency("o", 0, 1))
    agent.bench.release.set()
    agent.wait_ended("o")
    agent.worker.order(latency("o", 0, 1))  # the controller had not seen the end yet
    agent.wait(lambda said: sum(isinstance(b, OrderEnded) for b in said) == 2)
    assert agent.bench.measured == [("o", 0), ("o", 1)]


def test_an_order_that_cannot_be_read_is_answered(agent: Agent) -> None:
    agent.worker.refuse("o", "no work that this version knows")
    agent.wait_ended("o")
    (attempt,) = agent.attempts()
    assert isinstance(attempt.outcome, Failure)
    assert attempt.outcome.detail == f"this agent ({__version__}) cannot read what was ordered: no work that this version knows: upgrade it"
    assert agent.bench.measured == []


def test_a_failure_may_be_ordered_again(agent: Agent) -> None:
    agent.bench.outcomes["o"] = Failure(FailureKind.OOM, "too large", Stage.LOAD)
    agent.worker.order(latency("o"))
    agent.wait_ended("o")
    del agent.bench.outcomes["o"]
    agent.worker.order(latency("o"))
    agent.wait(lambda said: sum(isinstance(b, OrderEnded) for b in said) == 2)
    assert [isinstance(a.outcome, Failure) for a in agent.attempts()] == [True, False]


def test_a_launch_with_a_failed_contender_may_be_ordered_again(agent: Agent) -> None:
    failure = Failure(FailureKind.OOM, "too large", Stage.LOAD)
    agent.bench.outcomes["o"] = LatencyResult((ContenderResult("a", 1, 1.0), ContenderResult("b", failure=failure)))
    agent.worker.order(latency("o"))
    agent.wait_ended("o")
    del agent.bench.outcomes["o"]
    agent.worker.order(latency("o"))
    agent.wait(lambda said: sum(isinstance(b, OrderEnded) for b in said) == 2)
    assert agent.bench.measured == [("o", 0), ("o", 0)]


def test_a_result_that_became_a_failure_on_its_way_may_be_ordered_again(agent: Agent) -> None:
    agent.remote.push_errors = [QuotaExceeded("no more")]
    order = replace(latency("a"), work=AccuracyWork(CONTENDER, (SHARD_DIGEST,)))
    agent.worker.order(order)
    agent.wait_ended("a")
    agent.worker.order(order)
    agent.wait(lambda said: sum(isinstance(b, OrderEnded) for b in said) == 2)
    assert [type(a.outcome) for a in agent.attempts()] == [Failure, AccuracyResult]


def test_launches_in_the_journal_are_not_run_again_after_a_restart(agent: Agent, tmp_path: Path) -> None:
    agent.acknowledge = False
    agent.worker.order(latency("o", 0, 1))
    agent.wait_ended("o")
    agent.worker.stop()
    again = Agent(tmp_path)
    again.worker.order(latency("o", 0, 1, 2))
    again.wait_ended("o")
    assert again.bench.measured == [("o", 2)]
    assert sorted(a.index for a in again.attempts()) == [0, 1, 2]
    again.worker.stop()


def test_cancel_kills_the_running_launch(agent: Agent) -> None:
    agent.bench.hold.add("o")
    agent.worker.order(latency("o", 0, 1))
    agent.worker.order(latency("next"))
    agent.worker.order(latency("unwanted"))
    assert agent.bench.started.wait(20)
    assert agent.worker.running() == "o"
    agent.worker.cancel("unwanted")
    agent.worker.cancel("o")
    said = agent.wait_ended("o", "next", "unwanted")
    assert OrderEnded("o", cancelled=True) in said
    assert OrderEnded("unwanted", cancelled=True) in said
    assert [a.order for a in agent.attempts()] == ["next"]


def test_the_next_order_is_fetched_ahead(agent: Agent) -> None:
    other = Artifact(digest_bytes(b"other"), 5, "onnx", (FileEntry("net.onnx", digest_bytes(b"other"), 5),))
    agent.remote.blobs[other.digest] = b"other"
    agent.bench.hold.add("o")
    arrived = threading.Event()
    agent.remote.on_fetch = lambda digest: arrived.set() if digest == other.digest else None
    agent.worker.order(latency("o"))
    assert agent.bench.started.wait(20)
    candidate = replace(CANDIDATE, artifact=other)
    work = LatencyWork((Contender(candidate.key, candidate),), Scenario(), SHARD_DIGEST, (0,))
    agent.worker.order(replace(latency("next"), work=work))
    assert arrived.wait(20)  # the fake bench holds no measure lock
    agent.worker.cancel("next")
    agent.bench.release.set()
    agent.wait_ended("o", "next")


def test_an_artifact_that_is_not_there_answers_every_launch(agent: Agent) -> None:
    del agent.remote.blobs[SHARD_DIGEST]
    agent.worker.order(latency("o", 0, 1))
    agent.wait_ended("o")
    for attempt in agent.attempts():
        assert isinstance(attempt.outcome, Failure)
        assert (attempt.outcome.kind, attempt.outcome.stage) == (FailureKind.TRANSFER, Stage.TRANSFER)
        assert SHARD_DIGEST in attempt.outcome.detail
    assert [a.index for a in agent.attempts()] == [0, 1]
    assert agent.bench.measured == []


def test_a_transfer_that_does_not_end_is_a_timeout_by_name(agent: Agent) -> None:
    agent.remote.fail[MODEL_DIGEST] = Unreachable("gone")
    agent.worker.order(latency("o", transfer_ns=20_000_000))
    agent.wait_ended("o")
    (attempt,) = agent.attempts()
    assert isinstance(attempt.outcome, Failure)
    assert (attempt.outcome.kind, attempt.outcome.stage) == (FailureKind.TIMEOUT, Stage.TRANSFER)
    assert "transfer" in attempt.outcome.detail


def test_a_full_disk_is_a_failure_and_the_agent_lives_on(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(agent.cache, "put_file", full)
        agent.worker.order(latency("o"))
        agent.wait_ended("o")
    (attempt,) = agent.attempts()
    assert isinstance(attempt.outcome, Failure)
    assert attempt.outcome.kind is FailureKind.TRANSFER
    assert "No space left on device" in attempt.outcome.detail
    agent.worker.order(latency("next"))
    agent.wait_ended("next")
    assert isinstance(agent.attempts()[-1].outcome, LatencyResult)


def test_two_failed_launches_end_an_order(agent: Agent) -> None:
    agent.bench.outcomes["o"] = Failure(FailureKind.TIMEOUT, "run: no answer", Stage.RUN)
    agent.worker.order(latency("o", 0, 1, 2, 3))
    agent.wait_ended("o")
    assert agent.bench.measured == [("o", 0), ("o", 1)]
    details = [a.outcome.detail for a in agent.attempts() if isinstance(a.outcome, Failure)]
    assert details == ["run: no answer"] * 2 + ["not tried, since launch 1 failed: run: no answer"] * 2


def test_a_bug_in_the_bench_is_the_attempts_failure(agent: Agent) -> None:
    agent.bench.outcomes["o"] = RuntimeError("surprise")
    agent.worker.order(latency("o"))
    agent.wait_ended("o")
    (attempt,) = agent.attempts()
    assert isinstance(attempt.outcome, Failure)
    assert "surprise" in attempt.outcome.detail


def test_detached_it_goes_on_measuring_and_tells_later(agent: Agent) -> None:
    agent.bench.hold.add("o")
    agent.worker.order(latency("o", 0, 1))
    assert agent.bench.started.wait(20)
    agent.attached.clear()
    agent.bench.release.set()
    while len(agent.journal.attempts()) < 2 or "o" not in agent.outbox.ending():
        agent.bench.started.wait(0.01)
    assert agent.said == []
    assert agent.worker.open_orders() == ("o",)
    agent.attach()
    said = agent.wait_ended("o")
    assert [type(b).__name__ for b in said] == ["Attempt", "Attempt", "OrderEnded"]
    assert agent.worker.open_orders() == ()


def test_what_is_not_acknowledged_is_sent_again_at_the_next_attach(agent: Agent) -> None:
    agent.acknowledge = False
    agent.worker.order(latency("o"))
    agent.wait_ended("o")
    agent.acknowledge = True
    agent.attach()
    agent.wait(lambda said: sum(isinstance(b, Attempt) for b in said) == 2)
    assert agent.journal.attempts() == ()
    agent.attach()
    agent.worker.order(latency("next"))
    agent.wait_ended("next")
    assert [a.order for a in agent.attempts()] == ["o", "o", "next"]


def test_a_push_that_breaks_is_tried_again(agent: Agent) -> None:
    agent.remote.push_errors = [Unreachable("broken"), Unreachable("broken")]
    agent.worker.order(latency("o"))
    agent.wait_ended("o")
    (attempt,) = agent.attempts()
    assert isinstance(attempt.outcome, LatencyResult)
    assert attempt.outcome.samples in agent.remote.blobs


@pytest.mark.parametrize(
    "error", [Denied("no open orders"), OSError(5, "Input/output error"), NotFound("?"), Unreachable("gone"), DigestMismatch("there")]
)
def test_a_finished_pass_is_kept_until_it_can_be_sent(agent: Agent, tmp_path: Path, error: Exception) -> None:
    agent.remote.push_errors = [error] * 12  # more than anybody counts
    agent.worker.order(replace(latency("a"), work=AccuracyWork(CONTENDER, (SHARD_DIGEST,))))
    while not agent.said and (not agent.outbox.ending() or len(agent.remote.push_errors) > 10):
        agent.bench.started.wait(0.01)
    assert agent.said == []
    agent.worker.stop()
    again = Agent(tmp_path)  # the cache and the journal have survived
    again.wait(lambda said: any(isinstance(b, Attempt) for b in said))
    (attempt,) = again.attempts()
    assert attempt.outcome == AccuracyResult(CANDIDATE.key, digest_bytes(b"outputs"), digest_bytes(b"golden"), 1)
    assert digest_bytes(b"outputs") in again.remote.blobs
    again.worker.stop()


def test_what_was_refused_waits_longer_and_longer_until_an_attach_or_a_new_order(agent: Agent) -> None:
    agent.worker.stop()  # so that only this test delivers
    agent.remote.push_errors = errors = [Denied("no open orders")] * 2000
    outputs = agent.outbox.keep("a", 0, {"outputs": agent.bench.file("outputs")})["outputs"]
    agent.outbox.add(Attempt("a", 0, "dev", 1, 1, AccuracyResult(CANDIDATE.key, outputs, "", 1)), Limits())
    waits = []
    for again in [lambda: agent.outbox.ask_again("another")] * 1500 + [agent.outbox.attached]:  # as often as in a long night
        waits.append(agent.outbox.deliver(lambda: False) or 0.0)
        left = len(errors)
        agent.outbox.deliver(lambda: False)  # not due yet
        assert len(errors) == left
        again()
    assert waits[0] < waits[1] < waits[5]
    assert max(waits) <= 60.0
    assert waits[-1] > 50.0
    assert agent.outbox.deliver(lambda: False) is not None
    assert agent.attempts() == []
    errors[:] = [QuotaExceeded("the other order allows 2 bytes")]
    agent.outbox.ask_again("another")
    assert agent.outbox.deliver(lambda: False) is not None
    assert agent.attempts() == []
    agent.outbox.ask_again("a")
    assert agent.outbox.deliver(lambda: False) is None
    assert [type(a.outcome) for a in agent.attempts()] == [AccuracyResult]


def test_numbers_stand_without_their_raw_samples_but_an_accuracy_does_not(agent: Agent) -> None:
    agent.remote.push_errors = [QuotaExceeded("2 bytes are left"), QuotaExceeded("2 bytes are left")]
    agent.worker.order(latency("l"))
    agent.worker.order(replace(latency("a"), work=AccuracyWork(CONTENDER, (SHARD_DIGEST,))))
    agent.wait_ended("l", "a")
    numbers, accuracy = (a.outcome for a in agent.attempts())
    assert numbers == LatencyResult((ContenderResult(CANDIDATE.key, 1, 1.0),), True, "")
    assert accuracy == Failure(FailureKind.TRANSFER, "the outputs could not be sent: 2 bytes are left", Stage.TRANSFER)


def test_drain_finishes_the_running_order_and_gives_the_others_back(agent: Agent) -> None:
    agent.bench.hold.add("o")
    agent.worker.order(latency("o"))
    assert agent.bench.started.wait(20)
    agent.worker.order(latency("second"))
    agent.worker.drain()
    agent.worker.order(latency("third"))
    agent.bench.release.set()
    said = agent.wait_ended("o", "second", "third")
    ended = {b.order: b.cancelled for b in said if isinstance(b, OrderEnded)}
    assert ended == {"o": False, "second": True, "third": True}
    agent.attach()  # a new session knows of no drain
    agent.worker.order(latency("fourth"))
    agent.wait_ended("fourth")
    assert [a.order for a in agent.attempts()] == ["o", "fourth"]


def test_stopping_kills_what_runs_and_leaves_the_journal(agent: Agent) -> None:
    agent.bench.hold.add("o")
    agent.worker.order(latency("o"))
    assert agent.bench.started.wait(20)
    agent.worker.stop()
    assert agent.said == []
    assert agent.journal.attempts() == ()
    agent.worker.order(latency("late"))
    assert agent.worker.running() == "o"


def deployment(generation: int, **changes: object) -> Deployment:
    made = Deployment(f"d{generation}", "dev", "net", generation, "v", CANDIDATE, golden=Golden(GOLDEN_DIGEST, 0.1, 0.1))
    return replace(made, **changes)  # type: ignore[arg-type]


def deploy(agent: Agent, wanted: Deployment) -> DeploymentStatus:
    agent.worker.deploy(wanted)
    ended = [b for b in agent.wait(lambda said: _ended(said, wanted.id)) if isinstance(b, DeploymentStatus) and b.id == wanted.id]
    return ended[-1]


def _ended(said: list[AgentBody], wanted: str) -> bool:
    return any(isinstance(b, DeploymentStatus) and b.id == wanted and b.state is not DeploymentState.STAGED for b in said)


def test_a_deployment_is_fetched_checked_and_committed(agent: Agent, tmp_path: Path) -> None:
    status = deploy(agent, deployment(1))
    assert status.state is DeploymentState.COMMITTED
    assert Path(status.path).read_bytes() == MODEL
    assert [b.state for b in agent.said if isinstance(b, DeploymentStatus)] == [DeploymentState.STAGED, DeploymentState.COMMITTED]


def test_a_deployment_whose_outputs_are_wrong(agent: Agent) -> None:
    agent.bench.golden_failure = Failure(FailureKind.NUMERIC, "y is off")
    status = deploy(agent, deployment(1))
    assert (status.state, status.reason) == (DeploymentState.FAILED, "numeric: y is off")
    assert agent.counters.snapshot()[2] == {"user": 0}  # nothing had been switched


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"golden": None}, "no golden outputs"),
        ({"device": "other"}, "meant for other"),
        ({"activate": "serve"}, "serve is not available"),
        ({"model": "../x"}, "model name"),
        ({"golden": Golden("sha256:" + "0" * 64, 0.1, 0.1)}, "transfer: sha256:000"),
        ({"golden": Golden("nonsense", 0.1, 0.1)}, "not a digest"),
    ],
)
def test_a_deployment_that_cannot_be_done(agent: Agent, changes: dict[str, object], reason: str) -> None:
    status = deploy(agent, deployment(1, **changes))
    assert status.state is DeploymentState.FAILED
    assert reason in status.reason
    assert deploy(agent, deployment(2)).state is DeploymentState.COMMITTED


def test_bit_rot_in_the_cache_does_not_go_live(agent: Agent) -> None:
    agent.cache.put(MODEL)
    path = agent.cache.path(MODEL_DIGEST)
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"mOdel")

    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Path(deploy(agent, deployment(1)).path).read_bytes() == MODEL
    assert MODEL_DIGEST in agent.remote.fetched


def test_a_rollback_by_another_process_is_reported(agent: Agent, tmp_path: Path) -> None:
    agent.remote.blobs[digest_bytes(b"other")] = b"other"
    deploy(agent, deployment(1))
    second = replace(CANDIDATE, options={"threads": 1})
    deploy(agent, deployment(2, candidate=second))
    Slots(tmp_path / "models", "dev").roll_back("net")
    agent.worker.wake()  # a heartbeat does so
    agent.wait(lambda said: any(isinstance(b, DeploymentStatus) and b.state is DeploymentState.ROLLED_BACK for b in said))
    agent.wait(lambda said: isinstance(said[-1], DeploymentStatus) and said[-1].reason.startswith("pinned"))
    assert agent.counters.snapshot()[2] == {"user": 1}
    assert deploy(agent, deployment(3)).state is DeploymentState.COMMITTED
    agent.worker.wake()
    assert deploy(agent, deployment(4, candidate=second)).state is DeploymentState.COMMITTED
    assert agent.counters.snapshot()[2] == {"user": 1}
    rolled_back = [b for b in agent.said if isinstance(b, DeploymentStatus) and b.state is DeploymentState.ROLLED_BACK]
    assert len(rolled_back) == 1  # said once


def test_an_error_of_the_workers_thread_is_told(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(agent.slots, "stamp", broken)
    agent.worker.wake()
    agent.wait(lambda _: bool(agent.failed))
    assert isinstance(agent.failed[0], OSError)


def test_an_error_of_the_thread_that_fetches_ahead_is_told(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    agent.bench.hold.add("o")
    agent.worker.order(latency("o"))
    assert agent.bench.started.wait(20)
    monkeypatch.setattr(agent.cache, "find", None)  # a bug: no OSError, which is met again when the order's turn comes
    agent.worker.order(latency("next"))
    agent.wait(lambda _: bool(agent.failed))
    assert isinstance(agent.failed[0], TypeError)
