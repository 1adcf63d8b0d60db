import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.slots import Slots
from edgefarm.digest import artifact_digest, digest_bytes
from edgefarm.errors import NeedsUpgrade, UserError
from edgefarm.model import (
    Artifact,
    Candidate,
    Deployment,
    DeploymentState,
    DeploymentStatus,
    Failure,
    FailureKind,
    FileEntry,
    Golden,
    Io,
    TensorMap,
)

STEPS = [
    "intent", "stage", "stage-file", "stage-statement", "check", "discard", "place", "flip", "commit", "clean",
]  # fmt: skip


class PowerCut(BaseException):
    pass


class FakeStore:
    """Files by digest, with the artifacts that were made of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def entry(self, name: str, payload: bytes) -> FileEntry:
        digest = digest_bytes(payload)
        (self.folder / digest[7:]).write_bytes(payload)
        return FileEntry(name, digest, len(payload))

    def obtain(self, entry: FileEntry) -> Path:
        return self.folder / entry.digest[7:]

    def deployment(self, number: int, generation: int | None = None, model: str = "net", **changes: object) -> Deployment:
        text = f"graph {number}".encode()
        files = (self.entry(f"v{number}.onnx", text), self.entry("weights.data", text * 3))
        artifact = Artifact(artifact_digest((f.name, f.digest, f.bytes) for f in files), sum(f.bytes for f in files), "onnx", files)
        candidate = Candidate(artifact, "onnxruntime", {"threads": 1}, Io((TensorMap("x", "x:0", (0, 2, 1)),), ()))
        generation = number if generation is None else generation
        made = Deployment(f"d{number}-{generation}", "dev", model, generation, f"int8/{number}", candidate, golden=Golden("", 0.1, 0.1))
        return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    return FakeStore(tmp_path / "store")


def right(_: Deployment, __: Path) -> None:
    return None


def wrong(_: Deployment, __: Path) -> Failure:
    return Failure(FailureKind.NUMERIC, "output y is off by 3")


def running(root: Path, model: str = "net") -> int | None:
    """Number of the deployment that a program finds, after checking that it is whole; None if there is none."""
    current = root / model / "current"
    if not current.exists():
        assert not current.is_symlink()
        return None
    statement = json.loads((current / "deployment.json").read_text())
    number = int(statement["variant"].partition("/")[2])
    text = f"graph {number}".encode()
    assert (current / "model.onnx").read_bytes() == text
    assert (current / "weights.data").read_bytes() == text * 3
    assert {p.name for p in current.iterdir()} == {"model.onnx", "weights.data", "deployment.json"}
    return number


def activate(slots: Slots, store: FakeStore, number: int, check: Callable[..., Failure | None] = right) -> DeploymentStatus:
    return slots.activate(store.deployment(number), store.obtain, check)


def test_activation_gives_one_stable_path(tmp_path: Path, store: FakeStore) -> None:
    slots = Slots(tmp_path / "models", "dev")
    for number in (1, 2, 3):
        status = activate(slots, store, number)
        assert status.state is DeploymentState.COMMITTED
        assert status.path == str(tmp_path / "models" / "net" / "current" / "model.onnx")
        assert Path(status.path).read_bytes() == f"graph {number}".encode()
        assert running(tmp_path / "models") == number
    assert status.previous == store.deployment(2).candidate.artifact.digest
    assert not os.path.isabs(os.readlink(tmp_path / "models" / "net" / "current"))
    assert slots.statuses() == (status,)


def test_deployment_json_says_what_a_program_needs(tmp_path: Path, store: FakeStore) -> None:
    activate(Slots(tmp_path / "models", "dev"), store, 1)
    statement = json.loads((tmp_path / "models" / "net" / "current" / "deployment.json").read_text())
    assert statement["file"] == "model.onnx"
    assert statement["runtime"] == "onnxruntime"
    assert statement["options"] == {"threads": 1}
    assert statement["generation"] == 1
    first = {"source": "x", "name": "x:0", "permutation": [0, 2, 1], "scale": None, "zero_point": None, "dtype": None}
    assert statement["io"]["inputs"] == [first]
    assert [f["name"] for f in statement["artifact"]["files"]] == ["model.onnx", "weights.data"]


def test_a_failed_check_keeps_the_old_one_and_is_remembered(tmp_path: Path, store: FakeStore) -> None:
    slots = Slots(tmp_path / "models", "dev")
    activate(slots, store, 1)
    activate(slots, store, 2)
    failed = activate(slots, store, 3, wrong)
    assert failed.state is DeploymentState.FAILED
    assert failed.reason == "numeric: output y is off by 3"
    assert running(tmp_path / "models") == 2
    assert {p.name for p in (tmp_path / "models" / "net").iterdir()} == {"a", "b", "current", "ledger.json"}
    again = Slots(tmp_path / "models", "dev")
    assert activate(again, store, 3) == failed  # not tried again, though it would pass now
    committed = again.statuses()[-1]
    assert (committed.generation, committed.state) == (2, DeploymentState.COMMITTED)
    assert committed.previous == store.deployment(1).candidate.artifact.digest  # the failure cost no way back
    retried = again.activate(store.deployment(3, generation=4), store.obtain, right)
    assert retried.state is DeploymentState.COMMITTED


def test_generations_never_go_back(tmp_path: Path, store: FakeStore) -> None:
    slots = Slots(tmp_path / "models", "dev")
    activate(slots, store, 5)
    old = activate(slots, store, 4)
    assert old.state is DeploymentState.SUPERSEDED
    assert "generation 4 is not above 5" in old.reason
    other = slots.activate(store.deployment(7, generation=5), store.obtain, right)
    assert other.state is DeploymentState.SUPERSEDED
    assert running(tmp_path / "models") == 5
    activate(slots, store, 6, wrong)
    assert slots.activate(store.deployment(8, generation=6), store.obtain, right).state is DeploymentState.SUPERSEDED


def test_the_same_deployment_twice_takes_effect_once(tmp_path: Path, store: FakeStore) -> None:
    slots, checked = Slots(tmp_path / "models", "dev"), []

    def check(deployment: Deployment, main: Path) -> None:
        checked.append(main.name)

    first = activate(slots, store, 1, check)
    assert activate(slots, store, 1, check) == first
    assert checked == ["model.onnx"]


def test_the_same_candidate_under_a_new_generation_keeps_the_way_back(tmp_path: Path, store: FakeStore) -> None:
    slots = Slots(tmp_path / "models", "dev")
    activate(slots, store, 1)
    activate(slots, store, 2)
    status = slots.activate(store.deployment(2, generation=3), store.obtain, right)
    assert (status.generation, status.state) == (3, DeploymentState.COMMITTED)
    assert status.previous == store.deployment(1).candidate.artifact.digest
    assert running(tmp_path / "models") == 2


def test_going_back_needs_no_bytes(tmp_path: Path, store: FakeStore) -> None:
    slots = Slots(tmp_path / "models", "dev")
    activate(slots, store, 1)
    activate(slots, store, 2)

    def nothing(entry: FileEntry) -> Path:
        raise AssertionError(f"{entry.name} is in the other slot")

    status = slots.activate(store.deployment(1, generation=3), nothing, right)
    assert status.state is DeploymentState.COMMITTED
    assert running(tmp_path / "models") == 1


def test_a_damaged_slot_is_not_reused(tmp_path: Path, store: FakeStore) -> None:
    slots, asked = Slots(tmp_path / "models", "dev"), []
    activate(slots, store, 1)
    activate(slots, store, 2)
    damaged = tmp_path / "models" / "net" / "a" / "model.onnx"
    damaged.unlink()
    damaged.write_bytes(b"graph X")

    def obtain(entry: FileEntry) -> Path:
        asked.append(entry.name)
        return store.obtain(entry)

    assert slots.activate(store.deployment(1, generation=3), obtain, right).state is DeploymentState.COMMITTED
    assert asked == ["v1.onnx"]
    assert running(tmp_path / "models") == 1


def test_wrong_bytes_never_go_live(tmp_path: Path, store: FakeStore) -> None:
    slots = Slots(tmp_path / "models", "dev")
    activate(slots, store, 1)
    deployment = store.deployment(2)
    store.obtain(deployment.candidate.artifact.files[0]).write_bytes(b"graph X")
    status = slots.activate(deployment, store.obtain, right)
    assert status.state is DeploymentState.FAILED
    assert "v2.onnx" in status.reason
    assert running(tmp_path / "models") == 1


def test_rollback_on_the_device_is_kept_as_a_pin(tmp_path: Path, store: FakeStore) -> None:
    slots = Slots(tmp_path / "models", "dev")
    activate(slots, store, 1)
    activate(slots, store, 2)
    stamp = slots.stamp()
    status = Slots(tmp_path / "models", "dev").roll_back("net")
    assert (status.generation, status.state) == (1, DeploymentState.COMMITTED)
    assert "rolled back" in status.reason
    assert running(tmp_path / "models") == 1
    assert slots.stamp() != stamp
    assert [(s.id, s.state) for s in slots.statuses()] == [("d2-2", DeploymentState.ROLLED_BACK), ("d1-1", DeploymentState.COMMITTED)]
    assert activate(slots, store, 2).state is DeploymentState.ROLLED_BACK  # the controller says it again: the pin holds
    assert running(tmp_path / "models") == 1
    with pytest.raises(UserError, match="no earlier deployment"):
        slots.roll_back("net")
    assert activate(slots, store, 3).reason == ""  # a newer generation lifts the pin
    assert running(tmp_path / "models") == 3


def test_what_is_deployed_can_be_read_by_the_group_and_nothing_else(tmp_path: Path, store: FakeStore) -> None:
    before = os.umask(0o077)
    try:
        slots = Slots(tmp_path / "models", "dev")
        for generation in (1, 2):  # the second one is the same candidate: only its statement is new
            assert slots.activate(store.deployment(1, generation), store.obtain, right).state is DeploymentState.COMMITTED
    finally:
        os.umask(before)
    current = tmp_path / "models" / "net" / "current"
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in (tmp_path / "models", current.parent, current)} == {
        "models": "0o750", "net": "0o750", "current": "0o750"
    }  # fmt: skip
    assert {oct(p.stat().st_mode & 0o777) for p in current.iterdir()} == {"0o640"}
    assert oct((current.parent / "ledger.json").stat().st_mode & 0o777) == "0o600"


def test_rollback_without_anything_to_go_back_to(tmp_path: Path, store: FakeStore) -> None:
    slots = Slots(tmp_path / "models", "dev")
    with pytest.raises(UserError, match="nothing is deployed"):
        slots.roll_back("net")
    activate(slots, store, 1)
    with pytest.raises(UserError, match="no earlier deployment"):
        slots.roll_back("net")
    activate(slots, store, 2)
    (tmp_path / "models" / "net" / "a" / "weights.data").unlink()
    with pytest.raises(UserError, match="damaged"):
        slots.roll_back("net")
    assert running(tmp_path / "models") == 2


@pytest.mark.parametrize("changes", [{"activate": "serve"}, {"model": "../escape"}, {"model": ".hidden"}, {"model": ""}])
def test_what_cannot_be_activated_says_why(tmp_path: Path, store: FakeStore, changes: dict[str, str]) -> None:
    slots = Slots(tmp_path / "models", "dev")
    status = slots.activate(replace(store.deployment(1), **changes), store.obtain, right)  # type: ignore[arg-type]
    assert status.state is DeploymentState.FAILED
    assert status.reason
    assert not (tmp_path / "escape").exists()


@pytest.mark.parametrize("names", [("a.onnx", "deployment.json"), ("a.onnx", "model.onnx"), ("a.onnx", "../b"), ("a.onnx", "a.onnx")])
def test_files_whose_names_clash_or_escape(tmp_path: Path, store: FakeStore, names: tuple[str, str]) -> None:
    files = tuple(store.entry(n, n.encode()) for n in names)
    artifact = Artifact(artifact_digest((f.name, f.digest, f.bytes) for f in files), 0, "onnx", files)
    deployment = replace(store.deployment(1), candidate=Candidate(artifact, "onnxruntime"))
    status = Slots(tmp_path / "models", "dev").activate(deployment, store.obtain, right)
    assert status.state is DeploymentState.FAILED
    assert running(tmp_path / "models") is None


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(5, "Input/output error")])
def test_a_disk_that_refuses_leaves_the_old_one(tmp_path: Path, store: FakeStore, error: OSError) -> None:
    for step in STEPS[:-2]:
        root = tmp_path / step / "models"
        slots = Slots(root, "dev")
        activate(slots, store, 1)

        def refuse(at: str, here: str = step) -> None:
            if at == here:
                raise error

        status = activate(Slots(root, "dev", refuse), store, 2)
        assert (status.state, running(root)) == (DeploymentState.FAILED, 1)
        assert error.strerror in status.reason
    for step in STEPS[-2:]:  # after the flip it is committed, whatever is said afterwards
        root = tmp_path / step / "models"
        slots = Slots(root, "dev")
        activate(slots, store, 1)

        def refuse(at: str, here: str = step) -> None:
            if at == here:
                raise error

        status = activate(Slots(root, "dev", refuse), store, 2)
        assert (status.state, running(root)) == (DeploymentState.COMMITTED, 2)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_power_cut_at_any_step(tmp_path: Path, store: FakeStore, step: str, before: int) -> None:
    root = tmp_path / "models"
    for number in range(1, before + 1):
        activate(Slots(root, "dev"), store, number)

    def cut(at: str) -> None:
        if at == step:
            raise PowerCut

    with pytest.raises(PowerCut):
        activate(Slots(root, "dev", cut), store, before + 1)
    found = running(root)
    assert found in ({before, before + 1} if before else {None, 1})
    slots = Slots(root, "dev")
    slots.recover()
    assert running(root) == found
    folder = {p.name for p in (root / "net").iterdir()} if (root / "net").exists() else set()
    assert folder <= {"a", "b", "current", "ledger.json"}
    if before == 2 and found == 2:  # the way back is still there
        assert slots.statuses()[-1].previous == store.deployment(1).candidate.artifact.digest
    assert activate(slots, store, before + 1).state is DeploymentState.COMMITTED
    assert running(root) == before + 1


@pytest.mark.parametrize("step", ["rollback-flip", "rollback-commit"])
def test_a_power_cut_while_rolling_back_is_finished_by_recovery(tmp_path: Path, store: FakeStore, step: str) -> None:
    root = tmp_path / "models"
    activate(Slots(root, "dev"), store, 1)
    activate(Slots(root, "dev"), store, 2)

    def cut(at: str) -> None:
        if at == step:
            raise PowerCut

    with pytest.raises(PowerCut):
        Slots(root, "dev", cut).roll_back("net")
    assert running(root) in {1, 2}
    slots = Slots(root, "dev")
    slots.recover()
    assert running(root) == 1
    assert [s.state for s in slots.statuses()] == [DeploymentState.ROLLED_BACK, DeploymentState.COMMITTED]


@settings(deadline=None, max_examples=12)
@given(st.lists(st.tuples(st.sampled_from(["ok", "wrong", *STEPS]), st.integers(1, 3)), min_size=1, max_size=8))
def test_whatever_happens_the_old_or_the_new_one_runs(tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int]]) -> None:
    base = tmp_path_factory.mktemp("slots")
    root, store, expected = base / "models", FakeStore(base / "store"), None
    for generation, (event, number) in enumerate(events, 1):

        def cut(at: str, here: str = event) -> None:
            if at == here:
                raise PowerCut

        deployment = store.deployment(number, generation=generation)
        try:
            Slots(root, "dev", cut).activate(deployment, store.obtain, wrong if event == "wrong" else right)
        except PowerCut:
            Slots(root, "dev").recover()
        allowed = {"ok": {number}, "wrong": {expected}}.get(event, {expected, number})
        assert running(root) in allowed
        expected = running(root)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{repository!r}]
from tests.unit.test_slots import FakeStore, right
from agent.slots import Slots
left = int(sys.argv[1])
def step(name):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
root = Path(sys.argv[2])
store = FakeStore(root / "store")
Slots(root / "models", "dev", step).activate(store.deployment(2), store.obtain, right)
"""


def test_a_real_kill_in_the_middle(tmp_path: Path) -> None:
    script = KILLED.format(repository=str(Path(__file__).parents[2]))
    for left in (2, 7, 8):
        base = tmp_path / str(left)
        base.mkdir()
        store = FakeStore(base / "store")
        activate(Slots(base / "models", "dev"), store, 1)
        ended = subprocess.run([sys.executable, "-c", script, str(left), str(base)], timeout=60, capture_output=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        slots = Slots(base / "models", "dev")
        slots.recover()
        assert running(base / "models") in {1, 2}
        assert activate(slots, store, 2).state is DeploymentState.COMMITTED


def test_two_models_do_not_mix(tmp_path: Path, store: FakeStore) -> None:
    slots = Slots(tmp_path / "models", "dev")
    slots.activate(store.deployment(1, model="one"), store.obtain, right)
    slots.activate(store.deployment(2, model="two"), store.obtain, right)
    assert slots.models() == ["one", "two"]
    assert (running(tmp_path / "models", "one"), running(tmp_path / "models", "two")) == (1, 2)


NEWER = '{"schema": 2, "generations": [1, 2]}'


def test_what_only_a_newer_agent_understands_stays_as_it_is(tmp_path: Path, store: FakeStore) -> None:
    before = Slots(tmp_path / "models", "dev")
    activate(before, store, 1)
    ledger = tmp_path / "models" / "net" / "ledger.json"
    ledger.write_text(NEWER)
    slots = Slots(tmp_path / "models", "dev")
    slots.recover()
    assert slots.statuses() == ()
    assert slots.running()["net"].generation == 1
    for change in (lambda: activate(slots, store, 2), lambda: slots.roll_back("net"), lambda: slots.known(store.deployment(2))):
        with pytest.raises(NeedsUpgrade, match=r"ledger\.json: schema 2 is a newer agent's, .* knows 1: upgrade the agent"):
            change()
    assert (ledger.read_text(), running(tmp_path / "models")) == (NEWER, 1)


def test_what_a_newer_agent_added_is_no_reason_to_forget(tmp_path: Path, store: FakeStore) -> None:
    slots = Slots(tmp_path / "models", "dev")
    activate(slots, store, 1)
    assert activate(slots, store, 2, wrong).state is DeploymentState.FAILED
    ledger = tmp_path / "models" / "net" / "ledger.json"
    content = json.loads(ledger.read_text())
    (ended,) = content["ended"].values()
    ended |= {"state": "sent_home", "by": "a rule"}
    ledger.write_text(
        json.dumps({**content, "history": [], "intent": {"kind": "activate", "slot": "b", "id": "x", "generation": 3, "why": ""}})
    )
    again = Slots(tmp_path / "models", "dev")
    again.recover()
    known = again.known(store.deployment(2))
    assert known is not None
    assert (known.state, known.reason) == (DeploymentState.UNSPECIFIED, "numeric: output y is off by 3")
    assert activate(again, store, 4).state is DeploymentState.COMMITTED
