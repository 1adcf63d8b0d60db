"""The agent's process, put together: its parts, their threads, and how it ends."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent import identity, probe
from agent.activation import Activation
from agent.bench.governor import give_back as give_back_governor
from agent.bench.local import LocalBench
from agent.bench.site import Site, Surroundings
from agent.cache import Cache
from agent.clock import Clock
from agent.enrolment import FOLDER
from agent.journal import Journal
from agent.link import Credentials, Link
from agent.metrics import Counters, Page
from agent.notify import Notifier, Pulses
from agent.outbox import Outbox
from agent.pause import Pause
from agent.power import Meter
from agent.renewal import Renewal
from agent.runner.limits import limits_in_force
from agent.runner.process import Cancelled as RunnerCancelled
from agent.runner.scratch import remove
from agent.slots import Slots
from agent.telemetry import Reporter
from agent.threads import vital
from agent.transfer import Transfers
from agent.worker import Worker
from edgefarm import __version__
from edgefarm.credentials import load_identity
from edgefarm.errors import StorageError, Unreachable
from edgefarm.heap import give_back
from edgefarm.metrics import CONTENT_TYPE, DEVICE_METRICS, render
from edgefarm.model import (
    FEATURES,
    PROTOCOL,
    Ack,
    AttemptId,
    Cancel,
    Capability,
    ControllerBody,
    Deployment,
    Device,
    Drain,
    Heartbeat,
    Hello,
    Order,
    Probed,
    Welcome,
)
from edgefarm.windows import local_second

if TYPE_CHECKING:
    from ssl import SSLContext

    from edgefarm.pages import PageServer

_LOG = logging.getLogger(__name__)
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_PROBE_AGAIN_S = 30.0
_PROBE_AFTER_S = 2.0  # attaching comes first; without a controller, probing need not wait for it


@dataclass(frozen=True)
class Config:
    """What `edge-agent run` was told.

    Attributes:
        controller: gRPC target, `unix:/path` or HOST:PORT.
        enrolled: whether the state folder's identity proves it.
        threads: the device's limit for one model.
        runtimes: those it may use; None = all that are installed.
        metrics: HOST:PORT of the Prometheus page, or None for none.
        cache_bytes: quota of the cache; 0 = half of the free space.
        secret: what the first attach proves itself with.
        lock: the host's measure lock; None = the usual one.
        runner_socket: where systemd starts runners in units of their own; None = they are children of this process.
        memory_bytes: most that a runner may use, whatever an order says; 0 = most of what is available.
        meter: what the device's user said of where power is read.
        surroundings: cores, temperature and governor of a measurement.
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
    enrolled: bool = False
    runner_socket: Path | None = None
    memory_bytes: int = 0
    meter: Meter | None = None
    surroundings: Surroundings = field(default_factory=Surroundings)


class Supervisor:
    """One agent. `run` returns after `stop`, or raises why it cannot go on."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._state = identity.open_state(config.state)
        self._instance = identity.new_instance()
        self._stop, self._attached = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._pulses, self._pause = Pulses(), Pause(self._state)
        self._notifier = Notifier(self._pulses)
        self._counters = Counters()
        self._pages: PageServer | None = None
        self._probed = False
        self._too_old = ""  # why the controller gives this agent no orders

    def stop(self) -> None:
        """Ends the agent at once: the runner is killed, the journal stays. For a signal handler, also one that interrupts itself."""
        if not self._stop.is_set():
            self._stop.set()

    def run(self) -> None:
        """Works until `stop`.

        Raises:
            Busy: another agent uses the state folder, the metrics port is taken, or another agent took this device's place.
            Denied, ProtocolError: the controller refuses this agent for good.
            NeedsUpgrade: the controller is too old for this agent.
            StorageError: the state folder can't be used, or can be no longer.
        """
        with identity.FolderLock(self._state / "agent.lock", "another agent uses this state folder"):
            try:
                self._build()
            except OSError as error:
                raise StorageError(f"{self._state}: {error.strerror}") from error
            try:
                self._start()
                # Also without a network: restarting would not bring it back, and what runs here goes on running.
                self._notifier.ready(self._looking())
                self._stop.wait()
            finally:
                self._notifier.stopping()
                self._close()
        if isinstance(self._error, OSError):
            raise StorageError(f"{self._error.filename or self._state}: {self._error.strerror}") from self._error
        if self._error is not None:
            raise self._error

    def _build(self) -> None:
        config = self._config
        scratch = self._state / "scratch"
        remove(scratch)
        scratch.mkdir(exist_ok=True)
        if (file := config.surroundings.governor_file) is not None:
            give_back_governor(Path("/"), file)  # an agent before this one died while it measured
        cache = Cache(self._state / "cache", config.cache_bytes or _default_quota(self._state))
        self._journal = Journal(self._state / "journal")
        self._slots = Slots(self._state / "models", config.name)
        self._slots.recover()
        self._device = self._describe()
        self._clock = Clock(self._state / "clock")
        self._renewal = Renewal(
            self._state / FOLDER, self._state, self._clock, renewed=lambda: self._link.reconnect(), heard=lambda: self._link.hurry()
        )
        self._link = Link(
            config.controller, Credentials(config.name, config.secret),
            hello=self._hello, receive=self._receive, beat=self._beat, detached=self._detached,
            alive=lambda: self._pulses.beat("link"), refused=self._renewal.refused,
            identity=lambda: load_identity(self._state / FOLDER) if config.enrolled else None,
            unreadable=lambda order, why: self._worker.refuse(order, why),
        )  # fmt: skip
        self._page = Page(
            self._counters, self._state, self._slots.running, _own_rss, self._certificate_expiry, emulated=self._device.emulated
        )
        self._reporter = Reporter(self._page.families, self._link.send)
        transfers = Transfers(self._link.artifacts, cache, self._attached, self._counters, config.lock)
        site = Site(
            scratch, config.threads, config.lock, unit_socket=config.runner_socket, surroundings=config.surroundings, meter=config.meter
        )
        local = LocalBench(site, config.memory_bytes)
        self._outbox = Outbox(self._journal, cache, transfers, self._link.send)
        activation = Activation(config.name, self._slots, cache, transfers, local, self._link.send, self._counters)
        self._worker = Worker(
            config.name, local, cache, transfers, self._outbox, activation, scratch, self._counters, self._failed,
            paused=lambda: bool(self._pause), alive=lambda: self._pulses.beat("worker"), wall=self._clock.unix_ms,
        )  # fmt: skip

    def _describe(self) -> Device:
        config = self._config
        known = probe.cached_capabilities(config.runtimes, self._state)
        self._probed = known is not None
        return Device(
            config.name, identity.device_id(self._state), probe.host_id(),
            {**probe.labels(allowed=config.runtimes, meter=config.meter), **config.labels},
            {**probe.fingerprint(config.threads, allowed=config.runtimes), **config.surroundings.fingerprint()}, known or (),
            config.threads, bool(probe.emulation()), __version__,
        )  # fmt: skip

    def _start(self) -> None:
        if self._config.metrics is not None:
            self._serve_metrics(self._config.metrics)
        for name, limit in limits_in_force(in_unit=self._config.runner_socket is not None).items():
            _LOG.info("limit of a runner: %s: %s", name, limit)
        if self._config.runner_socket is not None:
            _LOG.info("runners are units of their own: %s", self._config.runner_socket)
        self._worker.start()
        vital("link", self._link.run, self._failed).start()
        if self._config.enrolled:
            vital("renewal", self._renewal.run, self._failed).start()
        if not self._probed:
            vital("probe", self._probe, self._failed).start()

    def _serve_metrics(self, address: str) -> None:
        from edgefarm.pages import PageServer, users_only  # only where it is asked for: it costs memory

        pages = {"/metrics": lambda: (CONTENT_TYPE, render(DEVICE_METRICS, [(self._config.name, self._page.families())]))}
        tls = self._metrics_tls if self._config.enrolled else None
        self._pages = PageServer(address, pages, "--metrics", tls=tls, admit=users_only)
        self._pages.start()
        self._device = replace(self._device, metrics_address=f"{self._pages.url}/metrics")
        _LOG.info("metrics: %s", self._device.metrics_address)

    def _metrics_tls(self) -> SSLContext:
        from edgefarm.pages import mutual_tls

        known = load_identity(self._state / FOLDER)
        if known is None:
            raise StorageError(f"{self._state / FOLDER}: this device's identity is gone")
        return mutual_tls(known.certificate_pem, known.key_pem, known.authority_pem)

    def _certificate_expiry(self) -> float | None:
        known = load_identity(self._state / FOLDER) if self._config.enrolled else None
        return None if known is None else known.not_after_unix_ms / 1000

    def _close(self) -> None:
        self._worker.stop()
        self._reporter.stop()
        self._renewal.stop()
        self._link.stop()
        if self._pages is not None:
            self._pages.stop()

    def _failed(self, error: BaseException) -> None:
        """One of the threads failed: the agent ends with its error. What one meets while all end already is no error."""
        if not self._stop.is_set():
            self._error = error
            self._stop.set()

    def _probe(self) -> None:
        """Proves what this device can run, while nothing is measured on its host, and tells the controller."""
        self._attached.wait(_PROBE_AFTER_S)
        try:
            while (found := self._prove()) is None:
                self._stop.wait(_PROBE_AGAIN_S)
        except RunnerCancelled:
            return
        for capability in found:
            _LOG.info("%s %s %s", capability.runtime, capability.provider, capability.reason or "works")
        self._device = replace(self._device, capabilities=found)
        self._probed = True
        self._link.send(Probed(self._device))

    def _prove(self) -> tuple[Capability, ...] | None:
        """None where no runner starts, or the disk refuses: an agent that cannot measure still deploys, goes back and tells.

        Raises Cancelled.
        """
        try:
            return probe.probe_capabilities(
                self._config.runtimes, self._state, lock=self._config.lock, cancelled=self._stop.is_set,
                unit_socket=self._config.runner_socket, scratch=self._state / "scratch",
            )  # fmt: skip
        except (Unreachable, OSError) as error:
            _LOG.error("nothing can be proved: %s", error)
            return None

    def _hello(self) -> Hello:
        unacknowledged = tuple(AttemptId(a.order, a.index) for a in self._journal.attempts())
        return Hello(
            PROTOCOL, FEATURES, self._instance, self._device, self._probed, self._worker.open_orders(), unacknowledged,
            self._slots.statuses(),
        )  # fmt: skip

    def _beat(self) -> Heartbeat:
        paused = bool(self._pause)
        self._worker.beat(paused=paused)  # it also looks for what another process changed in the slots
        self._notifier.status(self._too_old or ("paused" if paused else f"attached to {self._config.controller}"))
        return Heartbeat(self._worker.running(), self._disk_free(), _own_rss(), paused, local_second(self._clock.unix_ms()))

    def _detached(self) -> None:
        self._attached.clear()
        self._notifier.status(self._looking())

    def _looking(self) -> str:
        return f"not attached; looking for {self._config.controller}"

    def _receive(self, body: ControllerBody) -> None:
        if isinstance(body, Welcome):
            _LOG.info("attached, session %d, controller %s", body.epoch, body.version or "of an unknown version")
            self._too_old = body.upgrade
            if body.upgrade:
                _LOG.warning("no orders for this agent: %s", body.upgrade)
            self._attached.set()
            self._clock.heard(body.unix_ms)
            self._renewal.attached()
            self._worker.attached()
            self._reporter.attached(body.telemetry_ns)
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
