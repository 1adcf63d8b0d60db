"""Cutting commands and agents short with `kill -9`, and finding out what was lost, left behind, half written or done twice.

The witness of what was measured is the agent's log, written straight to its file: one line as each launch begins. What was finished
when a kill came is read from disk at that moment: attempts in the agents' journals and in the store, ended passes in the cache. A
launch that begins later although it was finished then was measured twice, and is an error.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from agent.journal import read_attempts
from edgefarm.digest import artifact_digest, digest_file
from tests import zoo
from tests.e2e.command import TIMEOUT_S, Done, start
from tests.e2e.zoo_fleets import write_fleet

WINNER = "int8"
_PACE_S = 0.02  # between two looks at what a process has written
_ENDS_WITHIN_S = 10.0
_BEGINS = re.compile(r"order (\S+): launch (\d+) begins$", re.MULTILINE)
_RECIPES = {WINNER: "quantize_static", "float16": "convert_float16", "dynamic": "quantize_dynamic"}

Launch = tuple[str, int]


def write_campaign(folder: Path, metric: dict[str, Any] | None = None, devices: int = 1) -> Campaign:
    """A campaign of a few seconds whose winner is clear: convolutions that int8 makes more than twice as fast, and two that it is not."""
    folder.mkdir(exist_ok=True)
    fleet = write_fleet(folder, zoo.convolution(folder, channels=64), name="kills")
    document = json.loads(fleet.read_text())
    document["optimize"] = {"recipes": [{"name": name, "passes": [{"pass": used}]} for name, used in _RECIPES.items()]}
    names = [f"bench-{number}" for number in range(1, devices + 1)]
    document["devices"] = [{**document["devices"][0], "name": name} for name in names]
    if metric:
        document["data"]["metric"] = metric
    fleet.write_text(json.dumps(document))
    return Campaign(fleet, names)


@dataclass(frozen=True)
class Snapshot:
    """What was finished when a kill came, and how far the witnesses were: characters of each device's log, events."""

    launches: frozenset[Launch]
    passes: int
    logged: Mapping[str, int]
    told: int


class Campaign:
    """One state folder that commands work on and are killed in.

    Attributes:
        snapshots: one per kill.
        command: the running `deploy`.
    """

    def __init__(self, fleet: Path, devices: Sequence[str]) -> None:
        self.fleet, self.folder = fleet, fleet.parent
        self.state = self.folder / ".edgefarm" / "kills"
        self._events = self.folder / "events.jsonl"
        self._devices = {name: self.state / "devices" / name for name in devices}
        self._runtime_folders: set[Path] = set()
        self.snapshots: list[Snapshot] = []
        self.command: subprocess.Popen[str] | None = None
        self._reader = ThreadPoolExecutor(1)

    # Running and cutting

    @property
    def rests(self) -> bool:
        """Whether no command is running."""
        return self.command is None or self.command.returncode is not None

    def go_on(self) -> None:
        """Starts `deploy` unless it runs."""
        if not self.rests:
            return
        self.command = start(["deploy", "--fleet", str(self.fleet), "--json", "--events", str(self._events)], self.folder)
        self._said = self._reader.submit(self.command.communicate)  # all the time: a report is larger than a pipe

    def finish(self) -> Done:
        """Waits for the running `deploy` to end."""
        assert self.command is not None
        stdout, stderr = self._said.result(timeout=TIMEOUT_S)
        return Done(self.command.returncode, stdout, stderr)

    def until(self, reached: Callable[[], bool]) -> bool:
        """Waits until `reached()`; False if the command ends before."""
        assert self.command is not None
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            if reached():
                return True
            try:
                self.command.wait(_PACE_S)
            except subprocess.TimeoutExpired:
                continue
            return False
        raise AssertionError(f"not reached within {TIMEOUT_S} s; the last events: {self.events()[-5:]}; the logs: {self._logs()}")

    def pause(self, seconds: float) -> bool:
        """Lets the command work on for a while; False if it ends before."""
        assert self.command is not None
        try:
            self.command.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def children(self, module: str) -> list[psutil.Process]:
        """Processes below the command that run a Python module or file of this name."""
        assert self.command is not None
        found = []
        try:
            for process in psutil.Process(self.command.pid).children(recursive=True):
                if any(word.endswith(module) for word in _words(process)):
                    found.append(process)
        except psutil.NoSuchProcess:
            pass
        return found

    def kill(self, kind: str, which: int = 0) -> str:
        """Kills an `agent`, the `command`, or `both` (all agents); where no agent is there yet, the command. Returns what was killed."""
        assert self.command is not None
        agents = self.children("agent.cli")
        if not agents and kind == "agent":
            kind = "command"
        if kind == "agent":
            agents = [agents[which % len(agents)]]
        victims = [*(agents if kind != "command" else ()), *([psutil.Process(self.command.pid)] if kind != "agent" else ())]
        self._note_runtime_folder()
        for victim in victims:
            os.kill(victim.pid, signal.SIGKILL)
        if kind == "agent":
            psutil.wait_procs(victims, _ENDS_WITHIN_S)
        else:
            self.finish()
            self.nothing_is_left()
        self._take_snapshot()
        return kind

    # What witnesses say

    def events(self) -> list[dict[str, Any]]:
        """Everything that the commands told so far."""
        lines = self._events.read_text().split("\n")[:-1] if self._events.exists() else []
        return [json.loads(line) for line in lines if line]

    def told(self, **fields: Any) -> Callable[[], bool]:
        """Whether the present command told an event with these fields."""
        since = len(self.events())
        return lambda: any(fields.items() <= event.items() for event in self.events()[since:])

    def begun(self) -> list[Launch]:
        """Launches in the order in which they began on each device; a cut one comes again."""
        return [launch for log in self._logs().values() for launch in _launches(log)]

    def measured(self) -> set[Launch]:
        """Launches whose attempts are stored."""
        return {(order, index) for order, index in self._query('select order_id, "index" from attempts where retired = 0')}

    def lost_once(self) -> bool:
        """Whether an order that has not ended has lost its device once: a second loss is its fault by design."""
        return bool(self._query("select id from orders where losses > 0 and state in ('queued', 'sent')"))

    def signs(self) -> int:
        """How much events and log have told so far: a clock of the campaign's progress."""
        return len(self.events()) + len(self.begun())

    def repeated(self) -> int:
        """Launches that began again."""
        return len(self.begun()) - len(set(self.begun()))

    # What must hold

    def nothing_is_left(self) -> None:
        """No process works in or for this campaign's folder any more, soon after its command ended."""
        _, alive = psutil.wait_procs(list(processes_in(self.folder)), _ENDS_WITHIN_S)
        left = {p.pid: p for p in [*alive, *processes_in(self.folder)]}
        assert not left, [(p.pid, _words(p)) for p in left.values()]

    def everything_is_whole(self) -> None:
        """All that a later command or device may use has the content that its name promises."""
        for store in (self.state / "artifacts", *(folder / "cache" for folder in self._devices.values())):
            for file in store.glob("sha256/??/*"):
                assert file.suffix == ".part" or digest_file(file) == f"sha256:{file.name}", file
        for folder in (self.state / "variants" / "objects").glob("*"):
            files = [(f.name, digest_file(f), f.stat().st_size) for f in folder.iterdir() if f.name != ".stamps"]
            assert artifact_digest(files) == f"sha256:{folder.name}", folder
        for current in self.state.glob("devices/*/models/*/current"):
            slot = current.resolve(strict=True)
            said = json.loads((slot / "deployment.json").read_text())["artifact"]["files"]
            assert {f["name"] for f in said} | {"deployment.json"} == {f.name for f in slot.iterdir()}
            assert all(digest_file(slot / f["name"]) == f["digest"] for f in said), slot
        assert self._query("pragma integrity_check") in ([("ok",)], [])

    def nothing_was_done_twice(self) -> None:
        """What was finished before a kill did not begin again after it; each kill cost one launch at most."""
        logs, events = self._logs(), self.events()
        for i, snapshot in enumerate(self.snapshots):
            later = [launch for name, log in logs.items() for launch in _launches(log[snapshot.logged[name] :])]
            again = set(later) & snapshot.launches
            assert not again, f"finished before kill {i}, and measured again: {again}"
            told_until = self.snapshots[i + 1].told if i + 1 < len(self.snapshots) else len(events)
            started = [e for e in events[snapshot.told : told_until] if e["event"] == "pass" and e["kind"] == "started"]
            assert len(started) <= len(_RECIPES) - snapshot.passes, f"{snapshot.passes} passes had ended, then began {started}"
        assert set(self.begun()) == self.measured()
        assert self.repeated() <= len(self.snapshots)

    def no_runtime_folder_is_left(self) -> None:
        """The socket's folders of killed commands are gone too."""
        assert not [f for f in self._runtime_folders if f.exists()]

    def _take_snapshot(self) -> None:
        logged, told = {name: len(log) for name, log in self._logs().items()}, len(self.events())
        # The journal first: an attempt goes from there to the store, never back.
        journals = [folder / "journal" for folder in self._devices.values()]
        finished = {(a.order, a.index) for journal in journals if journal.exists() for a in read_attempts(journal)}
        finished |= self.measured()
        passes = len(list((self.state / "variants" / "steps").glob("*.json")))
        self.snapshots.append(Snapshot(frozenset(finished), passes, logged, told))

    def _logs(self) -> dict[str, str]:
        files = {name: folder / "agent.log" for name, folder in self._devices.items()}
        return {name: file.read_text() if file.exists() else "" for name, file in files.items()}

    def _query(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows, none where there is no store yet."""
        if not (file := self.state / "store.db").exists():
            return []
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as store:
            if not store.execute("select 1 from sqlite_master where name = 'attempts'").fetchone():
                return []
            return store.execute(statement).fetchall()

    def _note_runtime_folder(self) -> None:
        note = self.state / "runtime-folder"
        if note.exists():
            self._runtime_folders.add(Path(note.read_text().strip()))


def processes_in(folder: Path) -> Iterator[psutil.Process]:
    """Processes whose command line names a folder, or that work inside it."""
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            inside = Path(process.cwd()).is_relative_to(folder)
        except psutil.Error:
            continue
        if inside or any(str(folder) in word for word in _words(process)):
            yield process


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _launches(log: str) -> list[Launch]:
    return [(order, int(index)) for order, index in _BEGINS.findall(log)]
