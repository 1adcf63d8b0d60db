"""Agents and controllers of other versions: real processes on both sides, real TLS between them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controller.client import Client
from controller.login import connected
from edgefarm import __version__
from edgefarm.digest import digest_file
from edgefarm.enrolment import enroll
from edgefarm.model import (
    FEATURES,
    PROTOCOL,
    AccuracyResult,
    AccuracyWork,
    Artifact,
    Candidate,
    Contender,
    Deployment,
    DeploymentState,
    DeviceStatus,
    Failure,
    FailureKind,
    FileEntry,
    Golden,
    LatencyResult,
    LatencyWork,
    MemoryResult,
    MemoryWork,
    Order,
    OrderState,
    OrderStatus,
    Scenario,
    Work,
)
from edgefarm.tensors import pack
from edgefarm.wire import to_bytes
from tests.integration.other_versions import ROOT, OtherVersion
from tests.integration.serving import EnrolledAgent, ServeProcess

MODEL = ROOT / "agent" / "runtimes" / "probe.onnx"  # x: float32[2, 2] -> y = x @ x + 1
DIGEST, SIZE = digest_file(MODEL), MODEL.stat().st_size
CANDIDATE = Candidate(Artifact(DIGEST, SIZE, "onnx", (FileEntry("net.onnx", DIGEST, SIZE),)), "onnxruntime", {"threads": 1})
CONTENDER = Contender(CANDIDATE.key, CANDIDATE)
X = np.arange(4, dtype=np.float32).reshape(2, 2)
WAIT_S = 90.0
NEWEST = PROTOCOL + 2  # that still speaks ours
pytestmark = pytest.mark.timeout(600)


class Farm:
    """A running controller with a device of its own, and a driver's view of it."""

    def __init__(self, folder: Path, served: ServeProcess, name: str = "dev") -> None:
        self.folder, self.served, self.name = folder, served, name
        self.state = folder / "dev"
        with self.client() as client:
            self.run = client.open_run(name, "spec", "{}", "me", {}).name
            client.put(MODEL)
            self.inputs = client.put(pack({"x": [X, X + 1]}))
            self.golden = client.put(pack({"input:x": [X], "output:y": [X @ X + 1]}))
            enroll(served.join, client.create_token(1, 3600.0, {}), name, self.state / "identity")

    @contextmanager
    def client(self) -> Iterator[Client]:
        with connected(self.served.socket, self.folder / "fetched", 20.0) as client:
            yield client

    def agent(self, version: OtherVersion | None = None) -> EnrolledAgent:
        return EnrolledAgent(self.state, within=version.within if version else ())

    def device(self, *states: str) -> DeviceStatus:
        """Once it is in one of `states`."""
        with self.client() as client:
            return until(
                lambda: next((s for s in client.devices() if s.device.name == self.name and s.state in states), None), client.devices
            )

    def order(self, name: str, work: Work) -> Order:
        return Order(f"{self.run}/{name}", self.run, "net", "", work, self.name)

    def latency(self, launches: int = 2, burst_ns: int = 1_000_000) -> LatencyWork:
        work = (CONTENDER,), Scenario(), self.inputs, tuple(range(launches))
        return LatencyWork(*work, bursts=2, burst_ns=burst_ns, warmup_ns=1_000_000)

    def outcomes(self, *orders: Order) -> list[Any]:
        """The first outcome of each, once all have ended."""
        with self.client() as client:
            client.submit(orders)
            ended = self.ended(client, [o.id for o in orders])
        return [status.attempts[0].outcome for status in ended]

    def ended(self, client: Client, names: Sequence[str]) -> list[OrderStatus]:
        def all_ended() -> list[OrderStatus] | None:
            found = {s.order.id: s for s in client.progress(self.run, wait_s=0.0).orders}
            return [found[n] for n in names] if all(found[n].state is OrderState.DONE for n in names) else None

        return until(all_ended, lambda: client.progress(self.run, wait_s=0.0))

    def deploy(self) -> Any:
        """The status that a deployment ends with."""
        wanted = Deployment(f"{self.name}/1", self.name, "net", 1, "plain/1", CANDIDATE, "file", Golden(self.golden, 1e-3, 1e-3))
        with self.client() as client:
            (status,) = client.deploy([wanted])
            return client.wait_for_deployments([status.id], WAIT_S)[0]

    def round(self) -> list[Any]:
        """Outcomes of one order of each kind."""
        work = {
            "latency": self.latency(),
            "memory": MemoryWork(CONTENDER, self.inputs, 2),
            "accuracy": AccuracyWork(CONTENDER, (self.inputs,)),
        }
        return self.outcomes(*(self.order(name, w) for name, w in work.items()))


def until(found: Callable[[], Any], instead: Callable[[], Any]) -> Any:
    deadline, pause = time.monotonic() + WAIT_S, threading.Event()
    while not (value := found()):
        assert time.monotonic() < deadline, instead()
        pause.wait(0.05)
    return value


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with ServeProcess(tmp_path_factory.mktemp("served") / "c") as started:
        yield started


@pytest.fixture
def farm(tmp_path: Path, served: ServeProcess) -> Farm:
    """One of several of the same controller."""
    return Farm(tmp_path, served, f"dev-{uuid.uuid4().hex[:8]}")


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> OtherVersion:
    return OtherVersion(tmp_path_factory.mktemp("newer"), "0.99.0", NEWEST, (*FEATURES, "dreams"), further=True)


def test_a_newer_agent_takes_part(farm: Farm, newer: OtherVersion) -> None:
    with farm.agent(newer) as agent:
        status = farm.device("ready")
        assert (status.device.agent_version, "quantum" in {c.runtime for c in status.device.capabilities}) == ("0.99.0", True)
        latency, memory, accuracy = farm.round()
        assert isinstance(latency, LatencyResult)
        assert isinstance(memory, MemoryResult)
        assert isinstance(accuracy, AccuracyResult)
        strange = [farm.order(name, MemoryWork(CONTENDER, farm.inputs, 2)) for name in ("strange-outcome", "strange-kind")]
        outcome, kind = farm.outcomes(*strange)
        assert outcome == Failure(FailureKind.UNSPECIFIED, "its agent gave a result of a kind that only a newer version knows")
        assert kind == Failure(FailureKind.UNSPECIFIED, "it was dull")
        assert farm.deploy().state is DeploymentState.COMMITTED
        assert "attached, session" in agent.output
        assert f"controller {__version__}" in agent.output
        assert agent.process.poll() is None
    assert not (farm.state / "journal").is_dir() or not list((farm.state / "journal").glob("*.attempt"))
    with farm.client() as client:
        traces = [t.quantity for s in client.progress(farm.run).orders for a in s.attempts for t in a.conditions.traces]
    assert "humidity_ratio" in traces


ASKED = ("latency", "memory", "accuracy", "activate-file")  # what `round` and `deploy` cannot do without


@pytest.mark.parametrize("lacking", [*((f,) for f in ASKED), tuple(f for f in FEATURES if f not in ASKED)], ids="+".join)
def test_an_older_agent_does_what_it_can(farm: Farm, tmp_path: Path, lacking: tuple[str, ...]) -> None:
    older = OtherVersion(tmp_path / "older", "0.0.9", PROTOCOL, [f for f in FEATURES if f not in lacking])
    with farm.agent(older):
        assert farm.device("ready").device.agent_version == "0.0.9"
        outcomes = dict(zip(("latency", "memory", "accuracy"), farm.round()))
        deployed = farm.deploy()
    refusal = f"the agent of '{farm.name}' (version 0.0.9) does not know {lacking[0]!r}: upgrade it"
    for name, outcome in outcomes.items():
        assert isinstance(outcome, Failure) == (name in lacking), outcome
        assert not isinstance(outcome, Failure) or outcome.detail.startswith(refusal)
    if "activate-file" in lacking:
        assert (deployed.state, deployed.reason.startswith(refusal)) == (DeploymentState.FAILED, True)
    else:
        assert deployed.state is DeploymentState.COMMITTED


def test_an_agent_that_is_too_old_is_told_to_be_upgraded(farm: Farm, tmp_path: Path) -> None:
    older = OtherVersion(tmp_path / "older", "0.0.1", 0)
    words = f"agent 0.0.1 speaks protocol 0, this controller ({__version__}) {PROTOCOL}: the agent is too old: upgrade it"
    with farm.agent(older) as agent:
        status = farm.device("needs_upgrade")
        assert status.reason.startswith(words)
        with farm.client() as client:
            client.submit([farm.order("o", farm.latency())])
        until(lambda: f"no orders for this agent: {words}" in agent.output, lambda: agent.output)
    with farm.agent():  # upgraded
        with farm.client() as client:
            (done,) = farm.ended(client, [f"{farm.run}/o"])
        assert isinstance(done.attempts[0].outcome, LatencyResult)


def test_an_agent_that_is_too_new_says_so_and_ends(farm: Farm, tmp_path: Path) -> None:
    with farm.agent(OtherVersion(tmp_path / "newest", "9.0.0", PROTOCOL + 3)) as agent:
        assert agent.process.wait(WAIT_S) == 2
        theirs = f"({__version__}) speaks protocol {PROTOCOL}, this agent (9.0.0) {PROTOCOL + 1} to {PROTOCOL + 3}"
        assert theirs in agent.output
        assert "the controller is too old: upgrade it, or go back to the agent before: install.sh --back" in agent.output
    with farm.agent():  # gone back
        assert farm.device("ready").device.agent_version == __version__


SUBMIT = """
import json, sys
from pathlib import Path
from controller.login import connected
from edgefarm.model import Contender, DreamWork, Order
from edgefarm.wire import from_bytes

socket, folder, inputs, contender = sys.argv[1:]
work = DreamWork(from_bytes(Contender, bytes.fromhex(contender)), inputs, 2)
with connected(socket, Path(folder), 20.0) as client:
    run = client.open_run("dreams", "spec", "{}", "me", {}).name
    client.submit([Order(f"{run}/dream", run, "net", "", work, "dev")])
    while True:
        (status,) = [s for s in client.progress(run, wait_s=1.0).orders if s.order.id.endswith("/dream")]
        if status.state.value == "done":
            break
    outcome = status.attempts[0].outcome
    print(json.dumps([len(status.attempts), outcome.kind.value, outcome.detail]))
"""


def test_a_newer_controller_is_served(tmp_path: Path, newer: OtherVersion) -> None:
    with ServeProcess(tmp_path / "c", within=newer.within) as served:
        farm = Farm(tmp_path, served)
        with farm.agent() as agent:
            farm.device("ready")
            assert [type(o) for o in farm.round()] == [LatencyResult, MemoryResult, AccuracyResult]
            told = [served.socket, str(tmp_path / "f"), farm.inputs, to_bytes(CONTENDER).hex()]
            submitted = subprocess.run([*newer.within, sys.executable, "-c", SUBMIT, *told], capture_output=True, text=True, timeout=WAIT_S)
            assert submitted.returncode == 0, submitted.stderr
            count, kind, detail = json.loads(submitted.stdout)
            assert (count, kind) == (1, "unspecified")
            assert detail == f"this agent ({__version__}) cannot read what was ordered: Order: no work that this version knows: upgrade it"
            (again,) = farm.outcomes(farm.order("again", farm.latency()))
            assert isinstance(again, LatencyResult)
            assert farm.deploy().state is DeploymentState.COMMITTED
            assert "message ignored: this version does not know it" in agent.output
            assert "controller 0.99.0" in agent.output
            assert agent.process.poll() is None


def test_a_controller_that_is_too_new_says_what_to_do(tmp_path: Path) -> None:
    newest = OtherVersion(tmp_path / "newest", "9.0.0", PROTOCOL + 3)
    with ServeProcess(tmp_path / "c", within=newest.within) as served:
        farm = Farm(tmp_path, served)
        with farm.agent() as agent:
            theirs = f"this controller (9.0.0) {PROTOCOL + 1} to {PROTOCOL + 3}"
            words = f"agent {__version__} speaks protocol {PROTOCOL}, {theirs}: the agent is too old"
            assert farm.device("needs_upgrade").reason.startswith(words)
            until(lambda: f"no orders for this agent: {words}" in agent.output, lambda: agent.output)
            assert agent.process.poll() is None


def begun(agent: EnrolledAgent, order: str) -> list[int]:
    return [
        int(line.split("launch ")[1].split()[0]) for line in agent.output.splitlines() if f"{order}: launch " in line and "begins" in line
    ]


def test_upgraded_and_gone_back_in_the_middle_of_a_round(farm: Farm, newer: OtherVersion) -> None:
    """One state folder, three processes: each goes on where the one before stopped."""
    order = farm.order("long", farm.latency(9, burst_ns=200_000_000))
    with ExitStack() as running:
        agent = running.enter_context(farm.agent())
        farm.device("ready")
        with farm.client() as client:
            client.submit([order])
        for version, launch in ((newer, 2), (None, 5)):
            until(lambda a=agent, n=launch: n in begun(a, order.id), lambda a=agent: a.output)
            agent.process.terminate()
            assert agent.process.wait(WAIT_S) == 0
            if version is None:
                leave_what_only_a_newer_version_reads(farm.state)
            agent = running.enter_context(farm.agent(version))
        with farm.client() as client:
            (done,) = farm.ended(client, [order.id])
        assert sorted(a.index for a in done.attempts) == list(range(9))
        assert all(isinstance(a.outcome, LatencyResult) for a in done.attempts)
        launches = begun(agent, order.id)  # one log for all three
        assert sorted(set(launches)) == list(range(9))
        assert len(launches) <= 9 + 2  # those that were cut
        assert farm.deploy().state is DeploymentState.COMMITTED
        assert farm.device("ready").device.agent_version == __version__
        with farm.client() as client:
            refused = Deployment(f"{farm.name}/2", farm.name, "strange", 1, "plain/1", CANDIDATE, "file", Golden(farm.golden, 1e-3, 1e-3))
            (status,) = client.wait_for_deployments([client.deploy([refused])[0].id], WAIT_S)
        assert status.state is DeploymentState.FAILED
        assert f"ledger.json: schema 9 is a newer agent's, {__version__} knows 1: upgrade the agent" in status.reason
        assert (farm.state / "models" / "strange" / "ledger.json").read_text() == '{"schema": 9, "future": []}'
        assert "unreadable attempt" in agent.output


def leave_what_only_a_newer_version_reads(state: Path) -> None:
    """As an agent of a later version may have left it: additions to what there is, and forms that are new."""
    identity = next(p for p in (state / "identity").iterdir() if p.suffix == ".json")
    identity.write_text(json.dumps({**json.loads(identity.read_text()), "motto": "onwards"}))
    (state / "journal" / "dream.attempt").write_bytes(b"\x0a\x05dream\xd2\x05\x02\x0a\x00")  # its outcome is field 90
    (state / "models" / "strange").mkdir(parents=True)
    (state / "models" / "strange" / "ledger.json").write_text('{"schema": 9, "future": []}')
