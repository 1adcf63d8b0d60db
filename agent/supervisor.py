"""The agent's process, put together: its parts, their threads, and how it ends."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent import bench, identity, probe, sensors
from agent.activation import Activation
from agent.bench import Measured, Site
from agent.cache import Cache
from agent.journal import Journal
from agent.link import Credentials, Link
from agent.metrics import Counters, MetricsServer, Page
from agent.outbox import Outbox
from agent.runner.limits import limits_in_force
from agent.slots import Slots
from agent.threads import vital
from agent.transfer import Cancelled, Transfers
from agent.worker import Worker
from edgefarm import __version__
from edgefarm.errors import StorageError
from edgefarm.heap import give_back
from edgefarm.model import (
    FEATURES,
    PROTOCOL,
    AccuracyWork,
    Ack,
    AttemptId,
    Cancel,
    Candidate,
    ControllerBody,
    Deployment,
    Device,
    Drain,
    Failure,
    Golden,
    Heartbeat,
    Hello,
    LatencyWork,
    Limits,
    Order,
    Probed,
    Welcome,
)

_LOG = logging.getLogger(__name__)
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_PROBE_AFTER_S = 2.0  # attaching comes first; without a controller, probing need not wait for it


@dataclass(frozen=True)
class Config:
    """What `edge-agent run` was told.

    Attributes:
        controller: gRPC target, `unix:/path`.
        threads: the device's limit for one model.
        runtimes: those it may use; None = all that are installed.
        metrics: HOST:PORT of the Prometheus page, or None for none.
        cache_bytes: quota of the cache; 0 = half of the free space.
        secret: what the first attach proves itself with.
        lock: the host's measure lock; None = the usual one.
    """

    controller: str
    name: str
    state: Path
    threads: int
    runtimes: Sequence[str] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    metrics: str | None = None
    cache_bytes: int = 0
    secret: str = ""
    lock: Path | None = None


class LocalBench:
    """Measures on this machine, in runner processes."""

    def __init__(self, scratch: Path, threads: int, lock: Path | None) -> None:
        self._site = Site(scratch, threads, lock)

    def measure(
        self, order: Order, index: int, models: Mapping[str, Path], inputs: Sequence[Path], cancelled: Callable[[], bool]
    ) -> Measured:
        """One launch, or the pass, of an order. Raises Cancelled."""
        site, work, limits = replace(self._site, cancelled=cancelled), order.work, order.limits
        try:
            if isinstance(work, LatencyWork):
                return bench.measure_latency(work, index, models, inputs[0], limits, site)
            model = models[work.contender.key]
            if isinstance(work, AccuracyWork):
                return bench.measure_accuracy(work, model, inputs, limits, site)
            return bench.measure_memory(work, model, inputs[0], limits, site)
        except bench.Cancelled:
            raise Cancelled from None

    def golden(self, candidate: Candidate, model: Path, pack: Path, golden: Golden, cancelled: Callable[[], bool]) -> Failure | None:
        """Runs golden inputs through a file that is about to go live. Raises Cancelled."""
        try:
            return bench.check_golden(candidate, model, pack, golden, Limits(), replace(self._site, cancelled=cancelled))
        except bench.Cancelled:
            raise Cancelled from None


class Supervisor:
    """One agent. `run` returns after `stop`, or raises why it cannot go on."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._state = identity.open_state(config.state)
        self._instance = identity.new_instance()
        self._stop, self._attached = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._counters = Counters()
        self._metrics: MetricsServer | None = None
        self._probed = False

    def stop(self) -> None:
        """Ends the agent at once: the runner is killed, the journal stays. Safe in a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Works until `stop`.

        Raises:
            Busy: another agent uses the state folder, the metrics port is taken, or another agent took this device's place.
            Denied, ProtocolError: the controller refuses this agent for good.
            StorageError: the state folder can't be used, or can be no longer.
        """
        with identity.FolderLock(self._state / "agent.lock", "another agent uses this state folder"):
            try:
                self._build()
            except OSError as error:
                raise StorageError(f"{self._state}: {error.strerror}") from error
            try:
                self._start()
                self._stop.wait()
            finally:
                self._close()
        if isinstance(self._error, OSError):
            raise StorageError(f"{self._error.filename or self._state}: {self._error.strerror}") from self._error
        if self._error is not None:
            raise self._error

    def _build(self) -> None:
        config = self._config
        scratch = self._state / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        cache = Cache(self._state / "cache", config.cache_bytes or _default_quota(self._state))
        self._journal = Journal(self._state / "journal")
        self._slots = Slots(self._state / "models", config.name)
        self._slots.recover()
        self._device = self._describe()
        self._link = Link(
            config.controller, Credentials(config.name, config.secret),
            hello=self._hello, receive=self._receive, beat=self._beat, detached=self._attached.clear,
        )  # fmt: skip
        transfers = Transfers(self._link.artifacts, cache, self._attached, self._counters, config.lock)
        local = LocalBench(scratch, config.threads, config.lock)
        self._outbox = Outbox(self._journal, cache, transfers, self._link.send)
        activation = Activation(config.name, self._slots, cache, transfers, local, self._link.send, self._counters)
        self._worker = Worker(
            config.name, local, cache, transfers, self._outbox, activation, scratch, self._counters, self._failed
        )  # fmt: skip

    def _describe(self) -> Device:
        config = self._config
        known = probe.cached_capabilities(config.runtimes, self._state)
        self._probed = known is not None
        return Device(
            config.name, identity.device_id(self._state), probe.host_id(), {**probe.labels(), **config.labels},
            probe.fingerprint(config.threads), known or (), config.threads, bool(probe.emulation()), __version__,
        )  # fmt: skip

    def _start(self) -> None:
        if self._config.metrics is not None:
            page = Page(self._config.name, self._counters, sensors.collect_by_sensor, self._slots.running, self._disk_free)
            self._metrics = MetricsServer(self._config.metrics, page)
            self._device = replace(self._device, metrics_address=self._metrics.url)
            _LOG.info("metrics: %s", self._metrics.url)
        for name, limit in limits_in_force().items():
            _LOG.info("limit of a runner: %s: %s", name, limit)
        self._worker.start()
        vital("link", self._link.run, self._failed).start()
        if not self._probed:
            vital("probe", self._probe, self._failed).start()

    def _close(self) -> None:
        self._worker.stop()
        self._link.stop()
        if self._metrics is not None:
            self._metrics.close()

    def _failed(self, error: BaseException) -> None:
        """One of the threads failed: the agent ends with its error. What one meets while all end already is no error."""
        if not self._stop.is_set():
            self._error = error
            self._stop.set()

    def _probe(self) -> None:
        """Proves what this device can run, while nothing is measured on its host, and tells the controller."""
        self._attached.wait(_PROBE_AFTER_S)
        try:
            found = probe.probe_capabilities(self._config.runtimes, self._state, lock=self._config.lock, cancelled=self._stop.is_set)
        except bench.Cancelled:
            return
        for capability in found:
            _LOG.info("%s %s %s", capability.runtime, capability.provider, capability.reason or "works")
        self._device = replace(self._device, capabilities=found)
        self._probed = True
        self._link.send(Probed(self._device))

    def _hello(self) -> Hello:
        unacknowledged = tuple(AttemptId(a.order, a.index) for a in self._journal.attempts())
        return Hello(
            PROTOCOL, FEATURES, self._instance, self._device, self._probed, self._worker.open_orders(), unacknowledged,
            self._slots.statuses(),
        )  # fmt: skip

    def _beat(self) -> Heartbeat:
        self._worker.wake()  # so that it notices what another process changed in the slots
        return Heartbeat(self._worker.running(), self._disk_free(), _own_rss())

    def _receive(self, body: ControllerBody) -> None:
        if isinstance(body, Welcome):
            _LOG.info("attached, session %d", body.epoch)
            self._attached.set()
            self._worker.attached()
            give_back()
        elif isinstance(body, Order):
            self._worker.order(body)
        elif isinstance(body, Cancel):
            self._worker.cancel(body.order)
        elif isinstance(body, Ack):
            self._outbox.acknowledge(body)
        elif isinstance(body, Deployment):
            self._worker.deploy(body)
        elif isinstance(body, Drain):
            self._worker.drain()

    def _disk_free(self) -> int:
        status = os.statvfs(self._state)
        return status.f_bavail * status.f_frsize


def _default_quota(state: Path) -> int:
    status = os.statvfs(state)
    held = sum(p.stat().st_size for p in (state / "cache").rglob("*") if p.is_file())
    return (status.f_bavail * status.f_frsize + held) // 2


def _own_rss() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0
