"""The command around the loop: usage errors, refused verbs, looking while nobody drives, going back, losing a device at the start."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from controller.cli.later import _VERBS as LATER
from controller.hosted import driver_lock
from tests import zoo
from tests.e2e.command import controller, deploy, environment, processes_of, start
from tests.e2e.zoo_fleets import write_fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command-line")
    path = write_fleet(folder, zoo.dense(folder))
    document = json.loads(path.read_text())
    document["optimize"] = {"recipes": [{"name": "int8", "passes": [{"pass": "quantize_dynamic"}]}]}
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def optimized(fleet: Path) -> Path:
    """The state folder of a run that ended after optimising."""
    deploy(fleet, "--until", "optimize")
    return fleet.parent / ".edgefarm" / "zoo"


USAGE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "an unknown option": (("deploy", "--flet", "x"), ("--flet", "--fleet", "controller deploy --help")),
    "a missing argument": (("show",), ("RUN", "controller show --help")),
    "a missing value": (("runs", "--fleet"), ("--fleet", "argument")),
    "one argument too many": (("runs", "zoo@1"), ("zoo@1", "controller runs --help")),
    "an unknown verb": (("deply",), ("deply", "deploy", "controller --help")),
}


@pytest.mark.parametrize("name", USAGE)
def test_a_usage_error_is_one_json_document_where_one_is_asked_for(tmp_path: Path, name: str) -> None:
    words, says = USAGE[name]
    done = controller(words[0], "--json", *words[1:], cwd=tmp_path)
    assert (done.code, done.document["exit_code"], done.document["error"]["code"]) == (2, 2, "user")
    assert done.stderr == f"error: {done.document['error']['message']}\n"
    for part in says:
        assert part in done.document["error"]["message"]
    plain = controller(*words, cwd=tmp_path)
    assert (plain.code, plain.stdout) == (2, "")
    assert "Error: " in plain.stderr


def test_verbs_of_later_are_listed_and_refuse_by_name(tmp_path: Path) -> None:
    shown = controller("--help", cwd=tmp_path)
    lines = {line.split()[0]: line for line in shown.stdout.splitlines() if line.startswith("  ") and line.strip()}
    for name in LATER:
        assert "Not available in this version" in lines[name]
    assert "Not available" not in lines["deploy"]
    for words in (("export", "zoo@1", "--out", "x"), ("pause", "zoo")):
        done = controller(*words, "--json", cwd=tmp_path)
        assert (done.code, done.document["error"]["code"], done.document["exit_code"]) == (2, "not-available", 2)
        assert f"controller {words[0]}: not available in this version" in done.document["error"]["message"]
        plain = controller(*words, cwd=tmp_path)
        assert (plain.code, plain.stdout) == (2, "")


@pytest.mark.parametrize("verb", ["devices", "runs"])
def test_a_controller_elsewhere_asks_who_one_is(tmp_path: Path, verb: str) -> None:
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    for words, changes in (((verb, "--controller", "farm:7443"), home), ((verb,), {**home, "EDGEFARM_CONTROLLER": "farm:7443"})):
        done = controller(*words, "--json", cwd=tmp_path, changes=changes)
        assert (done.code, done.document["error"]["code"]) == (2, "user")
        assert "controller farm:7443: log in first" in done.document["error"]["message"]


@pytest.mark.parametrize(
    "words", [("lease", "a", "--for", "1h"), ("drain", "a"), ("release", "a"), ("cancel", "zoo@1"), ("token", "create")]
)
def test_what_only_a_running_controller_does_asks_which_one(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = controller(*words, "--json", cwd=tmp_path)
    assert (done.code, done.document["error"]["code"]) == (2, "user")
    assert "which controller? Give --controller HOST:PORT" in done.document["error"]["message"]


def test_a_length_of_time_has_a_unit(tmp_path: Path) -> None:
    done = controller("lease", "a", "--for", "2", "--json", "--controller", "farm:7443", cwd=tmp_path)
    assert done.code == 2
    assert "--for 2: not a length of time such as 90s, 30m, 2h or 1d" in done.document["error"]["message"]


def test_what_nobody_drives_is_off_and_waits(fleet: Path, optimized: Path) -> None:
    def looked(*verb: str) -> dict[str, Any]:
        return controller(*verb, "--fleet", str(fleet), "--json", cwd=fleet.parent).document

    def state() -> tuple[str, str]:
        (device,), (run,) = looked("devices")["devices"], looked("runs")["runs"]
        assert looked("show", "zoo")["state"] == run["state"]
        assert device["reason"]
        return device["state"], run["state"]

    assert state() == ("off", "done-optimize")
    table = controller("devices", "--fleet", str(fleet), cwd=fleet.parent).stdout
    assert "off: its agent runs only while a command drives" in table
    deploying = start(("deploy", "--fleet", str(fleet)), fleet.parent)
    assert deploying.stderr is not None
    assert "run zoo@1" in deploying.stderr.readline()
    assert deploying.stderr.readline() != "", "it has told of optimising"
    deploying.send_signal(signal.SIGTERM)
    deploying.communicate(timeout=60)
    with driver_lock(optimized):
        device, run = state()
        assert device == "in_use"
        assert run in ("optimizing", "measuring")
    assert state() == ("off", "waiting_for_driver")
    assert controller("runs", "--state", str(optimized), "--json", cwd=Path("/")).document["runs"][0]["run"] == "zoo@1"


def test_going_back_from_nothing_starts_nothing(fleet: Path, optimized: Path, tmp_path: Path) -> None:
    done = controller("rollback", "--fleet", str(fleet), "--state", str(tmp_path / "state"), "--json", cwd=fleet.parent)
    assert (done.code, done.document["error"]["code"]) == (2, "user")
    assert "no run was started there yet" in done.document["error"]["message"]
    assert not (tmp_path / "state").exists()
    before = (optimized / "devices" / "bench-1" / "agent.log").stat()
    done = controller("rollback", "--fleet", str(fleet), "--json", cwd=fleet.parent)
    assert (done.code, done.document["error"]["code"]) == (2, "user")
    assert "device 'bench-1': nothing is deployed" in done.document["error"]["message"]
    after = (optimized / "devices" / "bench-1" / "agent.log").stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_the_estimate_says_that_it_is_rough(fleet: Path) -> None:
    done = controller("deploy", "--dry-run", "--fleet", str(fleet), cwd=fleet.parent)
    assert done.code == 0
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("bench-1: ")]
    assert "roughly" in told
    assert done.stdout.splitlines()[-1].startswith("The times are rough: ")
    document = controller("deploy", "--dry-run", "--json", "--fleet", str(fleet), cwd=fleet.parent).document
    assert document["devices"][0]["estimated_seconds"] > 0
    assert not document["more_may_follow"], "what users wrote is all that is tried"
    roomy = fleet.with_name("roomy.yaml")
    roomy.write_text(json.dumps({**json.loads(fleet.read_text()), "optimize": {"budget": {"variants": 40}}}))
    told = controller("deploy", "--dry-run", "--fleet", str(roomy), cwd=fleet.parent).stdout
    assert "what devices show of these may suggest more, up to 40 in all" in told
    assert document["estimate"].startswith("rough: ")


def test_a_device_that_does_not_start_is_lost_and_the_others_go_on(fleet: Path, tmp_path: Path) -> None:
    document = json.loads(fleet.read_text())
    document["devices"].append({"name": "bench-2", "local": {"runtimes": ["onnxrt"]}})
    both = fleet.with_name("both.yaml")
    both.write_text(json.dumps(document))
    state = str(tmp_path / "state")
    report = deploy(both, "--state", state, "--report", str(tmp_path / "report"), expected=4)
    good, bad = report["devices"]
    assert report["exit_code"] == 4
    assert (good["name"], good["deployment"]["state"]) == ("bench-1", "committed")
    assert (bad["name"], bad["winner"], bad["candidates"], bad["deployment"]) == ("bench-2", None, [], None)
    assert "onnxrt" in bad["reason"]
    assert "onnxrt" in (tmp_path / "report" / "report.txt").read_text()
    for share, code in (("50%", 0), ("40%", 4)):
        assert deploy(both, "--state", state, "--allow-unreachable", share, expected=code)["exit_code"] == code
    back = controller("rollback", "--fleet", str(both), "--state", state, "--json", cwd=fleet.parent)
    assert (back.code, back.document["error"]["code"]) == (2, "user")
    assert processes_of(tmp_path) == []
    narrow, wide = (in_terminal(columns, "report", "zoo", "--state", state) for columns in (40, 180))
    assert max(map(len, narrow)) <= 100
    assert max(map(len, wide)) <= 180
    assert len(wide) < len(narrow)


def in_terminal(columns: int, *arguments: str) -> list[str]:
    """Lines that `controller ARGUMENTS` prints to a terminal of so many columns."""
    main, side = pty.openpty()
    command = [sys.executable, "-m", "controller.cli", *arguments]
    process = subprocess.Popen(command, env=environment({"COLUMNS": str(columns)}), stdout=side, stderr=subprocess.DEVNULL)
    os.close(side)
    found = b""
    try:
        while part := os.read(main, 65536):
            found += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(main)
    assert process.wait(timeout=60) == 0
    return found.decode().splitlines()
