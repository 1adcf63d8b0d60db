"""The fleet of `test_network_fleet`: a controller, a driver and four enrolled agents, each on a host of its own, and what they leave.

Four hosts have four measure locks, and the controller lets them measure at the same time: nothing else would show what the farm does
with hosts that don't wait for each other. They disturb each other's timing here, so any verdict may choose; int8 is clearly faster.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from controller.client import Client
from controller.connection import Connection
from edgefarm.model import DeviceStatus
from tests.e2e.command import TIMEOUT_S, Done, environment
from tests.e2e.network import NAME, PORTS, Host, Network
from tests.examples import FASHION

JOIN = f"{NAME}:{PORTS[0]}"
# Devices of a class share trials. A runtime more, which no variant here uses, or a thread, which no candidate does, makes other classes.
_ALIKE = ("--runtimes", "onnxruntime", "--threads", "1")
DEVICES = {
    "far": _ALIKE,
    "lossy": _ALIKE,
    "slow": ("--runtimes", "onnxruntime", "--threads", "2"),
    "hidden": ("--runtimes", "onnxruntime,tflite", "--threads", "1"),
}
MATES = tuple(name for name, settings in DEVICES.items() if settings is _ALIKE)
WINNER = "int8"
DELAY_S = 0.1  # of each way of the far link
_METRICS = "127.0.0.1:9100"
_SAMPLES = 200
_VERDICTS = ["stable", "noisy", "throttled", "interfered", "unsteady"]
_PACE_S = 0.05  # between two looks at what a process has written
_BEGINS = re.compile(r"order (\S+): launch (\d+) begins$", re.MULTILINE)

Launch = tuple[str, int]


@dataclass(frozen=True)
class Seen:
    """A device's state as the controller tells it, from a moment on (monotonic seconds)."""

    moment: float
    state: str
    reason: str


class Watch(threading.Thread):
    """Notes every change of a device's state. Use it as a context manager."""

    def __init__(self, devices: Callable[[], Sequence[DeviceStatus]], name: str) -> None:
        super().__init__(name=f"watch {name}", daemon=True)
        self._devices, self._device, self._over = devices, name, threading.Event()
        self._changed = threading.Condition()
        self.seen: list[Seen] = []

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Until the block ends."""
        while not self._over.wait(_PACE_S):
            status = next((s for s in self._devices() if s.device.name == self._device), None)
            if status is not None and (not self.seen or self.seen[-1].state != status.state):
                with self._changed:
                    self.seen.append(Seen(time.monotonic(), status.state, status.reason))
                    self._changed.notify_all()

    def wait(self, condition: Callable[[str], bool], after: float = 0.0) -> Seen:
        """The first state after a moment that fulfils `condition`."""

        def found() -> Seen | None:
            return next((s for s in self.seen if s.moment >= after and condition(s.state)), None)

        with self._changed:
            assert self._changed.wait_for(found, TIMEOUT_S), self.seen
            result = found()
        assert result is not None
        return result


class NetworkFleet:
    """All that runs in the network, inside a `with Network()` block."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self.folder = network, folder
        self.controller, self.driver = network.host("controller"), network.host("driver")
        self.devices: dict[str, Host] = {"lossy": network.host("lossy"), "slow": network.host("slow")}
        self.controller_is_at(self.controller.address)
        self.devices |= {"hidden": network.hidden("hidden"), "far": network.far("far", DELAY_S)}
        self.controller_is_at(self.controller.address)
        self.environment = environment({"XDG_CONFIG_HOME": str(folder / "config")})

    def controller_is_at(self, address: str) -> None:
        """Tells all hosts but the far one, which only knows its relay, where the controller is."""
        for name, host in self.network.hosts.items():
            if name != "far":
                self.network.tell_names(host, address)

    # Starting

    def serve(self) -> None:
        """Starts the controller, on all of its host's addresses."""
        words = ("controller.cli", "serve", "--state", str(self.folder / "c"), "--listen", f"0.0.0.0:{PORTS[0]}", "--json")
        serving = self._start(self.controller, "controller.log", *words, stdout=subprocess.PIPE)
        assert serving.stdout is not None
        ready = json.loads(serving.stdout.readline() or "{}")
        assert ready, (self.folder / "controller.log").read_text()[-3000:]
        self.socket = ready["socket"]
        self._connection = Connection(self.socket)  # from this machine, past the network
        self.client = Client(self._connection, self.folder / "fetched")

    def close(self) -> None:
        """Ends the connection of this process."""
        self._connection.close()

    def join(self) -> None:
        """Enrolls and starts every agent, logs the driver's user in; returns once all devices are ready."""
        token = self.asked("token", "create", "--uses", "4", "--expires", "1h")["token"]
        for name, host in self.devices.items():
            state = str(self.folder / name)
            host.run(sys.executable, "-m", "agent.cli", "enroll", "--controller", JOIN, "--token", token, "--name", name, "--state", state)
            lock = str(self.folder / f"{name}.lock")
            words = ("agent.cli", "run", "--state", state, "--measure-lock", lock, "--metrics", _METRICS, *DEVICES[name])
            self._start(host, f"{name}.log", *words)
        login = self.asked("user", "add", "anna", "--role", "operator")["token"]
        done = self.command("login", "--controller", JOIN, "--token", login)
        assert done.code == 0, done.stderr
        for name in self.devices:
            with self.watched(name) as watch:
                watch.wait(lambda state: state == "ready")

    def watched(self, device: str) -> Watch:
        """Notes how a device's state changes."""
        return Watch(self.client.devices, device)

    def asked(self, *words: str) -> dict[str, Any]:
        """What the administrator, on the controller's host, is told."""
        command = self.controller.command(sys.executable, "-m", "controller.cli", *words, "--controller", self.socket, "--json")
        document: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
        return document

    def command(self, *words: str) -> Done:
        """What the driver's user types."""
        process = self.drive(*words)
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
        return Done(process.returncode, stdout, stderr)

    def drive(self, *words: str) -> subprocess.Popen[str]:
        """Starts a command of the driver's user."""
        command = (sys.executable, "-m", "controller.cli", *words)
        return self.network.start(
            self.driver, *command, cwd=self.folder, environment=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def _start(self, host: Host, log: str, *words: str, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        with (self.folder / log).open("a") as file:
            return self.network.start(host, sys.executable, "-m", *words, environment=self.environment, stdout=stdout, stderr=file)

    # Campaigns

    def deploy(self, name: str, *devices: str) -> Campaign:
        """Starts `controller deploy` of a model that no device has seen."""
        folder = self.folder / name
        folder.mkdir()
        model = onnx.load(FASHION / "model.onnx")
        model.doc_string = name
        onnx.save(model, folder / "model.onnx")
        with np.load(FASHION / "evaluation.npz") as evaluation:
            np.savez(folder / "evaluation.npz", allow_pickle=False, **{key: evaluation[key][:_SAMPLES] for key in evaluation})
        document = {
            "version": 1, "name": name, "controller": JOIN, "model": {"name": name, "path": "model.onnx"},
            "data": {"calibration": str(FASHION / "calibration.npz"), "evaluation": "evaluation.npz", "metric": "top1"},
            "devices": [{"name": device} for device in devices],
            "optimize": {"recipes": [{"name": WINNER, "passes": [{"pass": "quantize_static"}]}]},
            "measure": {"accept": _VERDICTS, "threads": [1]},
            "select": {"objective": "latency_p50", "constraints": {"accuracy_drop": 0.05}},
            "rollout": {"activate": "file"},
        }  # fmt: skip
        (folder / "edge.yaml").write_text(json.dumps(document))
        events = folder / "events.jsonl"
        words = ("deploy", "--fleet", str(folder / "edge.yaml"), "--json", "--events", str(events))
        return Campaign(self, name, events, self.drive(*words))

    # What is left

    def log_of(self, device: str) -> str:
        """What an agent told so far."""
        return (self.folder / f"{device}.log").read_text()

    def begun(self, campaign: str) -> Counter[Launch]:
        """How often each launch of a campaign began, on all devices together."""
        return Counter(launch for device in self.devices for launch in self.begun_on(device, campaign))

    def begun_on(self, device: str, campaign: str) -> list[Launch]:
        """Launches of a campaign in the order in which they began on a device."""
        found = [(order, int(index)) for order, index in _BEGINS.findall(self.log_of(device))]
        return [launch for launch in found if launch[0].startswith(f"{campaign}@")]

    def cache(self, device: str) -> dict[str, int]:
        """Bytes of every file in a device's cache, whole or partial, by name."""
        return {path.name: path.stat().st_size for path in (self.folder / device / "cache").glob("sha256/*/*")}

    def transferred(self, device: str) -> dict[str, int]:
        """Bytes of artifacts that a device has taken (`fetch`) and given (`push`), as its metrics page says."""
        script = f"import urllib.request as r; print(r.urlopen('http://{_METRICS}/metrics').read().decode())"
        page = self.devices[device].run(sys.executable, "-c", script)
        found = re.findall(r'edgefarm_artifact_transfer_bytes_total\{.*direction="(\w+)".*\} (\S+)', page)
        return {direction: int(float(count)) for direction, count in found}


@dataclass
class Campaign:
    """A running `deploy`."""

    fleet: NetworkFleet
    name: str
    events: Path
    process: subprocess.Popen[str]

    def until(self, reached: Callable[[], bool], what: str) -> None:
        """Waits until something is reached while the command runs."""
        end = time.monotonic() + TIMEOUT_S
        while not reached():
            assert self.process.poll() is None, f"{what}: the command ended with {self.process.returncode}\n{self._said()}"
            assert time.monotonic() < end, f"{what}: not within {TIMEOUT_S} s"
            time.sleep(_PACE_S)

    def pause(self, seconds: float) -> None:
        """Lets the command go on for a while, in which it must not end."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        raise AssertionError(f"the command ended with {self.process.returncode}\n{self._said()}")

    def told(self, **fields: Any) -> bool:
        """Whether the command told an event with these fields."""
        lines = self.events.read_text().split("\n")[:-1] if self.events.exists() else []
        return any(fields.items() <= json.loads(line).items() for line in lines)

    def finish(self) -> Done:
        """Waits for its end."""
        stdout, stderr = self.process.communicate(timeout=2 * TIMEOUT_S)
        return Done(self.process.returncode, stdout, stderr)

    def _said(self) -> str:
        stdout, stderr = self.process.communicate()
        return f"{stderr[-3000:]}\n{stdout[-1000:]}"
