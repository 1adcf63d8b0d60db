"""What the agent does now: one order at a time, launch by launch; deployments in between; nothing else while it measures."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from agent.activation import Activation
from agent.bench.site import Measured
from agent.cache import Cache
from agent.metrics import Counters
from agent.outbox import Outbox
from agent.threads import vital
from agent.transfer import Cancelled, TimedOut, Transfers
from edgefarm import __version__, windows
from edgefarm.errors import EdgefarmError
from edgefarm.heap import give_back
from edgefarm.model import (
    AccuracyResult,
    AccuracyWork,
    Attempt,
    Conditions,
    Contender,
    Deployment,
    Failure,
    FailureKind,
    LatencyResult,
    LatencyWork,
    Limits,
    Order,
    Outcome,
    Stage,
)

_LOG = logging.getLogger(__name__)
_IDLE_S = 60.0  # longest wait without a sign of life
_IN_A_ROW = 2  # launches that failed as a whole, after which the rest of an order is not tried


class Bench(Protocol):
    """How to measure: takes the host's measure lock, uses fresh runners, raises Cancelled once `cancelled()` is true."""

    def measure(
        self, order: Order, index: int, models: Mapping[str, Path], inputs: Sequence[Path], cancelled: Callable[[], bool]
    ) -> Measured:
        """One launch (or the pass) of an order. `models`: contender key -> main file; `inputs`: its shard, or its shards in order."""
        ...


class OpenOrder:
    """An order with the launches that are still to do."""

    def __init__(self, order: Order, indices: Sequence[int]) -> None:
        self.order = order
        self.left = deque(indices)
        self.cancelled = threading.Event()
        self.models: dict[str, Path] | None = None
        self.failures_in_a_row = 0
        self.owner = f"order {order.id}"  # of its pins in the cache

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """The candidates that it measures."""
        work = self.order.work
        return work.contenders if isinstance(work, LatencyWork) else (work.contender,)

    @property
    def shards(self) -> tuple[str, ...]:
        """Digests of the inputs that it feeds, in order."""
        work = self.order.work
        return work.shards if isinstance(work, AccuracyWork) else (work.inputs,)

    def wanted(self) -> dict[str, int | None]:
        """Digest -> bytes (None where the order doesn't say) of everything that it needs."""
        files = {f.digest: f.bytes for c in self.contenders for f in c.candidate.artifact.files}
        return {**files, **dict.fromkeys(self.shards)}


class Worker:
    """Runs orders and deployments in one thread, and fetches ahead for the next order in another.

    Args:
        device: this device's name.
        scratch: an empty folder on the cache's file system.
        failed: told of an error that ended one of the threads: nothing is worked on any more.
        paused: while it says so, no launch begins; orders go back once the controller was told (`beat`).
        alive: called again and again by the worker's thread for as long as it does not hang.
        wall: UTC milliseconds. By it and this machine's time zone, no launch begins outside of its order's window, whoever sent it:
            the order goes back.
    """

    def __init__(
        self, device: str, bench: Bench, cache: Cache, transfers: Transfers, outbox: Outbox, activation: Activation, scratch: Path,
        counters: Counters, failed: Callable[[BaseException], None], *, paused: Callable[[], bool] = lambda: False,
        alive: Callable[[], None] = lambda: None, wall: Callable[[], int] = lambda: time.time_ns() // 10**6,
    ) -> None:  # fmt: skip
        self._paused, self._alive, self._wall = paused, alive, wall
        self._device, self._bench, self._cache, self._transfers = device, bench, cache, transfers
        self._outbox, self._activation, self._scratch, self._counters = outbox, activation, scratch, counters
        self._changed = threading.Condition()
        self._open: deque[OpenOrder] = deque()
        self._deployments: deque[Deployment] = deque()
        self._draining = self._pause_told = self._stopped = self._woken = False
        self._threads = [vital("worker", self.run, failed), vital("fetch-ahead", self.run_ahead, failed)]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Kills what runs, and ends. What was not finished is not in the journal, and will be ordered again."""
        with self._changed:
            self._stopped = True
            for held in self._open:
                held.cancelled.set()
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout_s)

    def wake(self) -> None:
        """Something changed outside (a session, an acknowledgement): look again."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def beat(self, *, paused: bool) -> None:
        """A heartbeat goes up that says whether this device is paused: what follows it is understood. Look again."""
        self._pause_told = paused
        self.wake()

    def order(self, order: Order) -> None:
        """Takes an order, once; launches that are done already are not run again."""
        done = self._outbox.finished(order.id)
        self._outbox.ask_again(order.id)
        indices = order.work.launches if isinstance(order.work, LatencyWork) else (0,)
        with self._changed:
            if self._stopped or any(held.order.id == order.id for held in self._open):
                return
            if self._draining:
                self._outbox.end(order.id, cancelled=True)
            else:
                held = OpenOrder(order, [i for i in dict.fromkeys(indices) if i not in done])
                self._open.append(held)
                self._cache.pin(held.owner, held.wanted())
            self._woken = True
            self._changed.notify_all()

    def refuse(self, order: str, why: str) -> None:
        """Answers an order that only a newer version can read."""
        detail = f"this agent ({__version__}) cannot read what was ordered: {why}: upgrade it"
        failure = Failure(FailureKind.UNSPECIFIED, detail, Stage.RUN)
        self._outbox.add(Attempt(order, 0, self._device, self._wall(), 0, failure), Limits())
        self._outbox.end(order, cancelled=False)
        self.wake()

    def cancel(self, order: str) -> None:
        """Gives an order up, now."""
        with self._changed:
            for held in self._open:
                if held.order.id == order:
                    held.cancelled.set()
            self._woken = True
            self._changed.notify_all()

    def deploy(self, deployment: Deployment) -> None:
        """Takes a deployment, once."""
        with self._changed:
            if all(d.id != deployment.id for d in self._deployments):
                self._deployments.append(deployment)
            self._woken = True
            self._changed.notify_all()

    def attached(self) -> None:
        """A new session: a drain is over unless the controller repeats it, and what it has not acknowledged is sent again."""
        with self._changed:
            self._draining = False
        self._outbox.attached()
        self.wake()

    def drain(self) -> None:
        """Finishes the running order and takes no other; those that were not begun are given back."""
        with self._changed:
            self._draining = True
            for held in list(self._open)[1:]:
                held.cancelled.set()
            self._woken = True
            self._changed.notify_all()

    def open_orders(self) -> tuple[str, ...]:
        """Orders that this agent holds, the running one first."""
        with self._changed:
            open_here = [held.order.id for held in self._open]
        return tuple(dict.fromkeys([*open_here, *self._outbox.ending()]))

    def running(self) -> str:
        """The order that is being worked on, or ''."""
        with self._changed:
            return self._open[0].order.id if self._open else ""

    def run(self) -> None:
        """The worker thread."""
        while not self._is_stopped():
            wait_s = self._outbox.deliver(self._is_stopped)
            self._activation.report_changes()
            if self._activation.step(self._next_deployment(), self._is_stopped) or self._step():
                continue
            with self._changed:
                if not (self._woken or self._stopped):
                    self._changed.wait(_IDLE_S if wait_s is None else min(wait_s, _IDLE_S))
                self._woken = False

    def run_ahead(self) -> None:
        """The thread that fetches for the next order; what goes wrong here is met again, and reported, when its turn comes."""
        fetched: OpenOrder | None = None
        while True:
            with self._changed:
                while not self._stopped and (len(self._open) < 2 or self._open[1] is fetched):
                    self._changed.wait()
                if self._stopped:
                    return
                fetched = held = self._open[1]
            try:
                self._fetch(held, held.cancelled.is_set)
            except (Cancelled, EdgefarmError, OSError, ValueError) as error:
                _LOG.info("order %s: nothing fetched ahead: %s", held.order.id, error)

    def _is_stopped(self) -> bool:
        """Asked by whatever keeps the worker's thread for long, so that the asking is its sign of life."""
        self._alive()
        return self._stopped

    def _is_cut(self, held: OpenOrder) -> bool:
        return self._is_stopped() or held.cancelled.is_set()

    def _next_deployment(self) -> Deployment | None:
        with self._changed:
            return self._deployments.popleft() if self._deployments else None

    def _step(self) -> bool:
        """One launch of the running order (or its end); False if there is none."""
        with self._changed:
            held = next((o for o in self._open if o.cancelled.is_set()), self._open[0] if self._open else None)
        if held is None:
            return False
        if not held.left or held.cancelled.is_set():
            self._end(held)
            return True
        if self._paused():
            if told := self._pause_told:
                self._end(held)  # it may last: others of the class, and of this host, need not wait for it
            return told
        if held.order.window and not windows.is_open(held.order.window, local_s := windows.local_second(self._wall())):
            _LOG.info("order %s: given back: outside of its window %s", held.order.id, held.order.window)
            self._end(held, local_s)
            return True
        try:
            if held.models is None:
                held.models = self._prepare(held)
            self._launch(held)
        except Cancelled:
            if self._stopped:
                return False
            held.cancelled.set()
        except (EdgefarmError, OSError, ValueError) as error:
            if self._stopped:  # the end of the agent is no failure of the order
                return False
            kind = FailureKind.TIMEOUT if isinstance(error, TimedOut) else FailureKind.TRANSFER
            self._give_up(held, Failure(kind, str(error), Stage.TRANSFER))
        return True

    def _fetch(self, held: OpenOrder, cancelled: Callable[[], bool]) -> None:
        limit_s = held.order.limits.transfer_ns / 1e9
        started = time.monotonic()
        for digest, size in held.wanted().items():
            self._transfers.fetch(digest, size, max(0.001, limit_s - (time.monotonic() - started)), cancelled)

    def _prepare(self, held: OpenOrder) -> dict[str, Path]:
        self._fetch(held, lambda: self._is_cut(held))
        folder = self._scratch / "order"
        shutil.rmtree(folder, ignore_errors=True)
        return {c.key: self._cache.materialise(c.candidate.artifact, folder / str(i)) for i, c in enumerate(held.contenders)}

    def _launch(self, held: OpenOrder) -> None:
        index = held.left[0]
        _LOG.info("order %s: launch %d begins", held.order.id, index)
        inputs = self._inputs(held)
        asked_ms = self._wall()
        try:
            measured = self._bench.measure(held.order, index, held.models or {}, inputs, lambda: self._is_cut(held))
            outcome = self._keep(held, measured)
        except (Cancelled, OSError, EdgefarmError):
            raise
        except Exception as error:  # a bug of the measuring half must not end the agent: it is this attempt's failure
            _LOG.exception("order %s launch %d", held.order.id, index)
            outcome = Failure(FailureKind.CRASH, f"the agent failed to measure: {error!r}", Stage.RUN)
            measured = Measured(outcome, Conditions())
        started_ms = asked_ms + measured.waited_ns // 10**6  # when the host was this device's alone
        attempt = Attempt(held.order.id, index, self._device, started_ms, measured.duration_ns, outcome, measured.conditions)
        self._record(held, attempt)
        held.left.popleft()
        failure = outcome if isinstance(outcome, Failure) else None
        held.failures_in_a_row = held.failures_in_a_row + 1 if failure else 0
        if failure is not None and held.left and held.failures_in_a_row >= _IN_A_ROW:
            self._give_up(held, replace(failure, detail=f"not tried, since launch {index} failed: {failure.detail}"))

    def _inputs(self, held: OpenOrder) -> list[Path]:
        """The pinned shards; one that was damaged since is fetched again."""
        limit_s = held.order.limits.transfer_ns / 1e9
        return [self._transfers.fetch(digest, None, limit_s, lambda: self._is_cut(held)) for digest in held.shards]

    def _keep(self, held: OpenOrder, measured: Measured) -> Outcome:
        """Moves the blobs into the cache and their digests into the outcome. Raises OSError, QuotaExceeded."""
        try:
            digests = self._outbox.keep(held.order.id, held.left[0], measured.blobs)
        finally:
            for path in measured.blobs.values():  # what was not moved
                path.unlink(missing_ok=True)
        outcome = measured.outcome
        if isinstance(outcome, LatencyResult):
            return replace(outcome, samples=digests.get("samples", ""))
        if isinstance(outcome, AccuracyResult):
            return replace(outcome, outputs=digests.get("outputs", ""), golden=digests.get("golden", ""))
        return outcome

    def _record(self, held: OpenOrder, attempt: Attempt) -> None:
        self._counters.add_trial(held.order.model, attempt.outcome)
        self._outbox.add(attempt, held.order.limits)

    def _give_up(self, held: OpenOrder, failure: Failure) -> None:
        """Answers every launch that is left with the same failure, so that the controller waits for none."""
        _LOG.warning("order %s: %s: %s", held.order.id, failure.kind.value, failure.detail)
        for index in held.left:
            self._record(held, Attempt(held.order.id, index, self._device, self._wall(), 0, failure))
        held.left.clear()

    def _end(self, held: OpenOrder, local_s: int | None = None) -> None:
        if held.models is not None:
            shutil.rmtree(self._scratch / "order", ignore_errors=True)
        self._outbox.end(held.order.id, cancelled=bool(held.left), local_s=local_s)
        with self._changed:
            self._open.remove(held)
            self._cache.unpin(held.owner)
            self._changed.notify_all()
        give_back()
