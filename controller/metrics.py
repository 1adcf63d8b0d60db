"""`Listener`: the controller's HTTP side, for Prometheus: `/metrics` of farm and relayed devices, `/discovery` of the others."""

from __future__ import annotations

import ssl
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from cryptography import x509

from controller import discovery
from controller.farm import Farm
from controller.registry import Registry
from controller.report.kept import kept
from controller.telemetry import UP
from edgefarm import __version__
from edgefarm.errors import NotFound
from edgefarm.metrics import CONTENT_TYPE, DEVICE_METRICS, Metric, render
from edgefarm.model import DeploymentState, Device, DeviceStatus, Family, OrderState, Run, Series
from edgefarm.pages import PageServer, mutual_tls, users_only

_DEVICE_STATES = ("ready", "probing", "busy", "draining", "paused", "lost", "needs_upgrade")
CONTROLLER_METRICS: Mapping[str, Metric] = {
    "edgefarm_controller_build_info": Metric("Version of the controller, always 1.", ("version",)),
    "edgefarm_controller_devices": Metric("Registered devices, by state.", ("state",)),
    "edgefarm_controller_sessions_total": Metric("Sessions that devices began since the controller started."),
    "edgefarm_controller_orders": Metric("Orders by state; queued ones wait for a device.", ("state",)),
    "edgefarm_controller_runs": Metric("Runs, by state.", ("state",)),
    "edgefarm_controller_deployments": Metric("The newest deployment of each device and model, by state.", ("state",)),
    "edgefarm_controller_transfer_bytes_total": Metric("Bytes of artifacts that the controller sent and took.", ("direction",)),
    "edgefarm_controller_certificate_expiry_timestamp_seconds": Metric("When a certificate ends, as Unix time.", ("certificate",)),
    "edgefarm_model_metric": Metric("Accuracy of the winner, as the newest run that chose it measured it.", ("model", "metric")),
    "edgefarm_telemetry_timestamp_seconds": Metric("When the device reported last, as Unix time."),
}


class Listener:
    """Serves the pages between `start` and `stop`; `url` says where.

    Args:
        farm: should have been made with a telemetry period: else relayed devices show nothing but that they are up.
        address: HOST:PORT; loopback, or with `tls`.
        tls: makes the context of a connection (`edgefarm.pages.mutual_tls`).
        admit: looks at the certificate of a client on TLS; raises Denied.
        expiries: Unix time at which the controller's own certificates end, by name.
        labels: of a device, those that its operator is responsible for: one of them makes it `direct`.
        revoked: devices that nobody misses: they are not shown at all.

    Raises:
        UserError: the address is malformed, off loopback without TLS, or not of this machine.
        Busy: the port is taken.
    """

    def __init__(
        self, farm: Farm, address: str, *, tls: Callable[[], ssl.SSLContext] | None = None,
        admit: Callable[[ssl.SSLSocket], Any] = users_only, expiries: Callable[[], Mapping[str, float]] = dict,
        labels: Callable[[Device], Mapping[str, str]] = lambda device: device.labels, revoked: Callable[[], Collection[str]] = tuple,
    ) -> None:  # fmt: skip
        self._farm, self._expiries, self._labels, self._revoked, self._runs = farm, expiries, labels, revoked, _Runs(farm)
        pages = {"/metrics": self._metrics, "/discovery": self._discovery}
        self._server = PageServer(address, pages, "--metrics", tls=tls, admit=admit)
        self.url = self._server.url

    def start(self) -> None:
        """Answers from now on."""
        self._server.start()

    def stop(self) -> None:
        """Gives the port back."""
        self._server.stop()

    def _discovery(self) -> tuple[str, bytes]:
        return "application/json", discovery.targets(self._farm.devices(), self._labels)

    def _metrics(self) -> tuple[str, bytes]:
        pages = [("", list(self._own())), *self._devices()]
        return CONTENT_TYPE, render({**CONTROLLER_METRICS, **DEVICE_METRICS}, pages)

    def _own(self) -> Iterator[Family]:
        sessions, moved = self._farm.relay.counted()
        counts = self._farm.store.counts()
        devices = Counter(s.state for s in self._present())
        yield Family("edgefarm_controller_build_info", (Series({"version": __version__}, 1.0),))
        yield _by("edgefarm_controller_devices", "state", {**dict.fromkeys(_DEVICE_STATES, 0), **devices})
        yield Family("edgefarm_controller_sessions_total", (Series({}, float(sessions)),))
        yield _by("edgefarm_controller_orders", "state", {**_zeros(OrderState), **counts.orders})
        yield _by("edgefarm_controller_runs", "state", self._runs.by_state(counts.runs))
        yield _by("edgefarm_controller_deployments", "state", {**_zeros(DeploymentState), **counts.deployments})
        yield _by("edgefarm_controller_transfer_bytes_total", "direction", moved)
        yield _by("edgefarm_controller_certificate_expiry_timestamp_seconds", "certificate", self._expiries())

    def _present(self) -> list[DeviceStatus]:
        revoked = self._revoked()
        return [s for s in self._farm.devices() if s.device.name not in revoked]

    def _devices(self) -> Iterator[tuple[str, list[Family]]]:
        for status in self._present():
            device = status.device
            if not discovery.is_attached(status):
                yield device.name, [Family(UP, (Series({}, 0.0),))]
                continue
            families = self._runs.metrics_of(device.name)
            if not discovery.is_direct(device, self._labels(device)):
                report = self._farm.relay.report(device.name)
                families += [Family(UP, (Series({}, 1.0),)), *report.families.values()]
                if report.heard_unix_ms:
                    families.append(Family("edgefarm_telemetry_timestamp_seconds", (Series({}, report.heard_unix_ms / 1000),)))
            yield device.name, families


def listen(farm: Farm, registry: Registry, address: str, names: Iterable[str]) -> Listener:
    """The listener of a controller with an authority: off loopback, users with a certificate may read. Raises as `Listener`."""
    authority = registry.authority
    own = authority.certificate_pem.decode()
    expiry = x509.load_pem_x509_certificate(authority.certificate_pem).not_valid_after_utc.timestamp()
    key, chain = (pem.decode() for pem in authority.server(names))

    def admit(peer: ssl.SSLSocket) -> None:
        users_only(peer)
        registry.caller(ssl.DER_cert_to_PEM_cert(peer.getpeercert(binary_form=True) or b"").encode())

    return Listener(
        farm, address, tls=lambda: mutual_tls(chain, key, own), admit=admit, expiries=lambda: {"authority": expiry},
        labels=lambda device: registry.labels(device.name), revoked=registry.revoked,
    )  # fmt: skip


class _Runs:
    """States of all runs and what their reports say. Safe from any thread.

    A report is read once only: it is large. The newest run of a campaign may be taken up again, the others have ended for good.
    """

    def __init__(self, farm: Farm) -> None:
        self._farm = farm
        self._lock = threading.Lock()
        self._ended: dict[str, str] = {}
        self._finished: dict[str, int] = {}  # when the runs ended whose reports were read
        self._accuracy: dict[tuple[str, str], tuple[str, float]] = {}  # (device, model) -> (metric, value)

    def by_state(self, names: tuple[str, ...]) -> Mapping[str, int]:
        newest = set({name.rpartition("@")[0]: name for name in names}.values())
        with self._lock:
            return Counter(state for name in names if (state := self._state(name, final=name not in newest)))

    def metrics_of(self, device: str) -> list[Family]:
        with self._lock:
            found = [Series({"model": m, "metric": metric}, value) for (d, m), (metric, value) in self._accuracy.items() if d == device]
        return [Family("edgefarm_model_metric", tuple(found))] if found else []

    def _state(self, name: str, *, final: bool) -> str:
        if name in self._ended:
            return self._ended[name]
        run = self._farm.store.run(name)
        if run is None or not run.ended:
            return run.state if run else ""
        if self._finished.get(name) != run.finished_unix_ms:
            self._finished[name] = run.finished_unix_ms
            self._read(run)
        if final:
            self._ended[name] = run.state
        return run.state

    def _read(self, run: Run) -> None:
        try:
            report = kept(run, self._farm.get)
        except (NotFound, ValueError):  # somebody took it away, or damaged it
            report = {}
        for entry in report.get("devices", ()):
            accuracy = (entry.get("winner") or {}).get("accuracy") or {}
            if accuracy.get("value") is not None:
                self._accuracy[entry["name"], report["model"]["name"]] = (accuracy["metric"], float(accuracy["value"]))


def _by(name: str, label: str, counts: Mapping[str, float]) -> Family:
    return Family(name, tuple(Series({label: value}, float(count)) for value, count in counts.items()))


def _zeros(states: type[OrderState] | type[DeploymentState]) -> dict[str, int]:
    return {state.value: 0 for state in states if state.value != "unspecified"}
