"""A running controller with enrolled agents, all over TLS, that is stopped and started again while a driver works at it.

Agents and drivers are never stopped here, so whatever a restart loses, or has done twice, is the controller's fault.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from agent.journal import read_attempts
from controller.client import Client
from controller.login import connected
from edgefarm.digest import digest_file
from edgefarm.enrolment import enroll
from tests import zoo
from tests.e2e.command import TIMEOUT_S, Done, controller, start
from tests.e2e.zoo_fleets import write_fleet
from tests.fakes.lines import FakeLine
from tests.integration.other_versions import OtherVersion
from tests.integration.serving import EnrolledAgent, ServeProcess

WINNER = "int8"
Launch = tuple[str, int]
_RECIPES = {WINNER: "quantize_static", "float16": "convert_float16", "dynamic": "quantize_dynamic"}
_BEGINS = re.compile(r"order (\S+): launch (\d+) begins$", re.MULTILINE)
_PACE_S = 0.01  # between two looks at what a process has written


class RestartedFarm:
    """Use it as a context manager: everything that it started is gone afterwards.

    Attributes:
        line: leads to the controller's main port; devices and users know this address.
        join_line: leads to its join port.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.agents: dict[str, EnrolledAgent] = {}
        self._held = contextlib.ExitStack()
        self._commands: list[subprocess.Popen[str]] = []

    def __enter__(self) -> RestartedFarm:
        self.folder.mkdir(exist_ok=True)
        self.line, self.join_line = (self._held.enter_context(FakeLine()) for _ in range(2))
        settings = {"listen": "127.0.0.1:0", "main": "127.0.0.1:0", "advertise": self.line.address, "metrics": "127.0.0.1:0"}
        (self.folder / "controller.yaml").write_text(json.dumps(settings))
        self._serve()
        return self

    def __exit__(self, *_: object) -> None:
        for command in self._commands:
            command.kill()
            command.communicate()
        for agent in self.agents.values():
            agent.__exit__()
        self.controller.__exit__()
        self._held.close()

    def _serve(self) -> None:
        self.controller = ServeProcess(self.folder / "c", "--config", str(self.folder / "controller.yaml"))
        self.line.target, self.join_line.target = self.controller.main, self.controller.join

    # Who takes part

    def run(self, user: str, *words: str) -> Done:
        """What a user types; `root` is the administrator of the controller's machine."""
        where = self.controller.socket if user == "root" else self.join_line.address
        return controller(*words, "--controller", where, "--json", cwd=self.folder, changes=self._environment(user))

    def told(self, user: str, *words: str) -> dict[str, Any]:
        """The same, which must succeed."""
        done = self.run(user, *words)
        assert done.code == 0, done.stderr
        return done.document

    def starts(self, user: str, *words: str) -> subprocess.Popen[str]:
        """The same, not waited for."""
        command = start([*words, "--controller", self.join_line.address, "--json"], self.folder, self._environment(user))
        self._commands.append(command)
        return command

    def log_in(self, user: str, role: str) -> None:
        self.told(user, "login", "--token", self.told("root", "user", "add", user, "--role", role)["token"])

    def add_agents(self, *names: str) -> None:
        token = self.told("root", "token", "create", "--uses", str(len(names)), "--expires", "1h")["token"]
        for name in names:
            enroll(self.join_line.address, token, name, self.folder / name / "identity")
            self.start_agent(name)

    def start_agent(self, name: str, version: OtherVersion | None = None) -> None:
        lock = ("--measure-lock", str(self.folder / "measure.lock"))
        self.agents[name] = EnrolledAgent(self.folder / name, arguments=lock, within=version.within if version else ())

    def change_agent(self, name: str, version: OtherVersion | None = None) -> None:
        """Stops an agent, and starts one of another version (None: of this one) with its state."""
        self.stop_agent(name)
        self.start_agent(name, version)

    def stop_agent(self, name: str) -> None:
        agent = self.agents.pop(name)
        agent.process.terminate()
        assert agent.process.wait(60) == 0

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        """Of the administrator of the controller's machine."""
        with connected(self.controller.socket, self.folder / "fetched", 20.0) as client:
            yield client

    def attached(self) -> set[str]:
        """Devices that are there."""
        with self.client() as client:
            return {s.device.name for s in client.devices() if s.state not in ("lost", "probing")}

    def _environment(self, user: str) -> dict[str, str]:
        return {"XDG_CONFIG_HOME": str(self.folder / "config" / user)}

    # A campaign

    def write_fleet(self, name: str, devices: Sequence[str]) -> Path:
        """Convolutions whose source is several chunks long and that int8 makes more than twice as fast. Any verdict may choose."""
        folder = self.folder / name
        folder.mkdir()
        fleet = write_fleet(folder, zoo.convolution(folder, channels=192), name=name)
        document = json.loads(fleet.read_text())
        document["controller"] = self.join_line.address
        document["devices"] = [{"name": device} for device in devices]
        document["optimize"] = {"recipes": [{"name": n, "passes": [{"pass": used}]} for n, used in _RECIPES.items()]}
        document["measure"] = {"accept": ["stable", "noisy", "throttled", "interfered", "unsteady"]}
        fleet.write_text(json.dumps(document))
        return fleet

    def drive(self, user: str, fleet: Path, *more: str) -> subprocess.Popen[str]:
        words = ["deploy", "--fleet", str(fleet), "--json", "--events", str(fleet.with_name("events.jsonl")), *more]
        command = start(words, fleet.parent, self._environment(user))
        self._commands.append(command)
        return command

    def ended(self, driver: subprocess.Popen[str]) -> dict[str, Any]:
        """The report of a driver that ends well."""
        stdout, stderr = driver.communicate(timeout=TIMEOUT_S)
        assert driver.returncode == 0, stderr[-4000:]
        document: dict[str, Any] = json.loads(stdout)
        return document

    # What is cut

    def restart(self, number: signal.Signals) -> None:
        """Stops the controller, looks at what it left, and starts it again. What was held on a line is lost."""
        self.controller.process.send_signal(number)
        self.line.cut()
        self.join_line.cut()
        assert self.controller.process.wait(60) == (0 if number is signal.SIGTERM else -number)
        self.controller.__exit__()
        self.everything_is_whole()
        self._serve()

    def until(self, reached: Callable[[], bool], *running: subprocess.Popen[str]) -> None:
        """Waits until `reached()`, while `running` run."""
        end = time.monotonic() + TIMEOUT_S
        while not reached():
            for process in running:
                if process.poll() is not None:
                    raise AssertionError(f"a command ended: {process.communicate()[1][-3000:]}")
            for name, agent in self.agents.items():
                assert agent.process.poll() is None, f"{name} ended: {agent.output[-3000:]}"
            assert time.monotonic() < end, f"not reached; the logs: {self._logs()}"
            time.sleep(_PACE_S)

    # What witnesses say

    def begun(self) -> list[Launch]:
        """Launches as the agents' logs tell them, one line as each begins."""
        return [(order, int(index)) for log in self._logs().values() for order, index in _BEGINS.findall(log)]

    def measured(self) -> set[Launch]:
        """Launches whose attempts are stored."""
        return {(order, index) for order, index in self.query('select order_id, "index" from attempts where retired = 0')}

    def under_way(self, stage: str, least_index: int = 0) -> bool:
        """Whether a launch of a stage runs: it has begun, and is neither stored nor in a journal."""
        begun = {(order, index) for order, index in self.begun() if f"/{stage}/" in order and index >= least_index}
        finished = {(a.order, a.index) for name in self.agents for a in read_attempts(self.folder / name / "journal")} if begun else set()
        return bool(begun - finished - self.measured())

    def activating(self) -> bool:
        """Whether a device checks a deployment: a runner works for an agent, and something that was ordered is not committed."""
        children = [c for a in self.agents.values() for c in psutil.Process(a.process.pid).children(recursive=True)]
        return bool(children) and bool(self.query("select id from deployments where state in ('ordered', 'staged')"))

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows of the controller's store."""
        with closing(sqlite3.connect(f"file:{self.folder / 'c' / 'store.db'}?mode=ro", uri=True)) as store:
            return store.execute(statement).fetchall()

    # What must hold

    def everything_is_whole(self) -> None:
        """All bytes that somebody may use are what their name says, and the store is sound."""
        for root in (self.folder / "c" / "artifacts", *(self.folder / name / "cache" for name in self.agents)):
            for file in root.glob("sha256/??/*"):
                assert file.suffix == ".part" or digest_file(file) == f"sha256:{file.name}", file
        assert self.query("pragma integrity_check") == [("ok",)]

    def nothing_was_lost_or_done_twice(self, cuts: int = 0) -> None:
        """Each launch began once, and each that began is stored; nothing waits in a journal. `cuts`: of agents; each costs one launch."""
        again = {launch: n for launch, n in Counter(self.begun()).items() if n > 1}
        assert sum(again.values()) - len(again) <= cuts, again
        assert set(self.begun()) == self.measured()
        assert not [a for name in self.agents for a in read_attempts(self.folder / name / "journal")]
        assert self.query("select id from orders where state not in ('done', 'cancelled')") == []

    def is_won(self, report: dict[str, Any]) -> list[str]:
        """On each device runs what must win there; returns the digests."""
        digests = []
        for device in report["devices"]:
            winner = device["winner"]
            assert winner["variant"].startswith(f"{WINNER}/")
            assert device["deployment"]["state"] == "committed"
            assert digest_file(Path(device["deployment"]["path"])) == winner["artifact"]["digest"]
            digests.append(winner["artifact"]["digest"])
        return digests

    def _logs(self) -> dict[str, str]:
        return {name: agent.output for name, agent in self.agents.items()}


def events(fleet: Path) -> list[dict[str, Any]]:
    """Everything that the drivers of a campaign told so far."""
    file = fleet.with_name("events.jsonl")
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]
