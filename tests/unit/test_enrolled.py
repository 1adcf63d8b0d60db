"""Entries of a fleet file and the devices that are enrolled at its controller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from controller.cli.deploy import enlisted
from controller.config import Fleet, load_fleet
from controller.config.enrolled import matches
from edgefarm.errors import FleetFileError
from edgefarm.model import Capability, DeviceStatus
from tests.fakes.orders import a_device

TOP = """version: 1
name: kitchen
controller: farm:7443
model: {path: model.onnx}
data:
  evaluation: evaluation.npz
devices:
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("model.onnx", "evaluation.npz"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def fleet(folder: Path, *entries: str, controller: str | None = None) -> Fleet:
    path = folder / "edge.yaml"
    path.write_text(TOP + "".join(f"  - {{{entry}}}\n" for entry in entries))
    return load_fleet(path, controller)


def status(name: str, state: str = "ready", threads: int = 4, **labels: str) -> DeviceStatus:
    device = replace(a_device(name, f"host-{name}"), labels=labels, threads=threads)
    return DeviceStatus(device, device.device_class, state)


KNOWN = [
    status("a", board="pi", site="x"),
    status("b", "lost", board="pi"),
    status("c", "draining", board="pi"),
    status("d", "busy", board="orin"),
    status("e", board="orin", threads=8),
]


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        (["name: a"], ["a"]),
        (["name: b"], ["b"]),
        (["selector: {board: orin}"], ["d", "e"]),
        (["selector: {board: [orin, pi]}, count: 4"], ["a", "d", "e", "b"]),
        (["selector: {board: pi, site: x}"], ["a"]),
        (["selector: {board: pi}, count: 2", "name: a"], ["b", "c", "a"]),
        (["selector: {board: pi}, count: 1", "selector: {board: [pi, orin]}, count: 2"], ["a", "d", "e"]),
    ],
)
def test_entries_mean_devices(folder: Path, entries: list[str], names: list[str]) -> None:
    given = fleet(folder, *entries)
    assert given.targets == ()
    for known in (KNOWN, KNOWN[::-1]):
        assert [t.name for t in given.enlist(known).targets] == names


def test_an_emulated_device_stands_in_for_no_real_one(folder: Path) -> None:
    emulated = replace(status("f", board="pi", emulated="yes").device, emulated=True)
    known = [*KNOWN, DeviceStatus(emulated, emulated.device_class, "ready")]
    for entries, names in (
        (["selector: {board: pi}"], ["a", "b", "c"]),
        (["selector: {board: pi, emulated: 'yes'}"], ["f"]),
        (["name: f"], ["f"]),
    ):
        assert [t.name for t in fleet(folder, *entries).enlist(known).targets] == names
    with pytest.raises(FleetFileError) as caught:
        fleet(folder, "selector: {board: pi}, count: 4").enlist(known)
    assert "meant by no other: a, b, c; emulated, so taken only with 'emulated: yes' in the selector: f" in str(caught.value)


def test_a_device_s_own_limits_and_runtimes_count(folder: Path) -> None:
    able = (Capability("onnxruntime", "CPU", "1", True), Capability("tflite", "none", "1", False), Capability("openvino", "CPU", "1", True))
    known = [replace(s, device=replace(s.device, capabilities=able)) for s in KNOWN]
    a, d, e = (
        fleet(folder, "name: a, threads: [1, 2]", "selector: {board: orin}, runtimes: [openvino], objective: size").enlist(known).targets
    )
    assert (a.runtimes, a.threads, a.options_threads, a.labels) == (("onnxruntime", "openvino"), 4, (1, 2), {"board": "pi", "site": "x"})
    assert (d.runtimes, d.options_threads, d.objective) == (("openvino",), (4,), "size")
    assert e.options_threads == (8,)


WRONG = {
    "unknown": (["name: aa"], "devices[0]: no device 'aa' is enrolled at farm:7443; did you mean 'a'?"),
    "unlike any": (["name: kitchen-camera"], "there are: a, b, c, d, e"),
    "too few": (
        ["selector: {board: pi}, count: 4"],
        "4 devices with board=pi are wanted; enrolled at farm:7443, and meant by no other: a, b, c",
    ),
    "none": (["selector: {board: [x, y]}"], "1 devices with board=x|y are wanted"),
    "taken": (["name: a", "selector: {site: x}"], "devices[1]: 1 devices with site=x"),
    "threads": (["name: a, threads: [5]"], "devices[0].threads[0]: 5 is more than the device's own limit of 'a', which is 4"),
    "runtimes": (["name: a, runtimes: [tflite]"], "'runtimes' names none of those of 'a': onnxruntime"),
    "local too": (
        ["name: a, local: {threads: 1}"],
        "devices[0].local: a device that the command starts itself, together with",
    ),
    "both": (["name: a, selector: {board: pi}"], "given by its 'name', or several by a 'selector'"),
    "neither": (["threads: [1]"], "given by its 'name', or several by a 'selector'"),
    "count": (["name: a, count: 2"], "devices[0].count: counts the devices that match a 'selector'"),
    "labels": (["name: a, labels: {x: y}"], "devices[0].labels: labels of an enrolled device are set by 'controller device label'"),
    "twice": (["name: a", "name: a"], "devices[1].name: two devices are named 'a'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(folder: Path, name: str) -> None:
    entries, message = WRONG[name]
    with pytest.raises(FleetFileError) as caught:
        _ = fleet(folder, *entries).enlist(KNOWN).targets
    assert message in str(caught.value)


def test_where_the_controller_is_makes_no_other_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.config.fleet.inspect_model", lambda path: type("Inspected", (), {"files": ()}))
    here, there = fleet(folder, "name: a"), fleet(folder, "name: a", controller="other:1")
    assert (here.controller, there.controller) == ("farm:7443", "other:1")
    assert here.spec_digest == there.spec_digest


def test_selectors() -> None:
    assert matches({}, {})
    assert matches({"a": "1"}, {"a": "1", "b": "2"})
    assert matches({"a": ["0", "1"], "b": "2"}, {"a": "1", "b": "2"})
    assert not matches({"a": "1"}, {"b": "1"})
    assert not matches({"a": "1", "b": "3"}, {"a": "1", "b": "2"})


def test_a_device_that_still_proves_what_it_can_is_waited_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As just after enrolling: it is there, and knows of no runtime yet."""
    ready, other = status("a"), status("z", "probing")
    new = replace(ready, device=replace(ready.device, capabilities=()), state="probing")
    asked: list[Sequence[DeviceStatus]] = [[new, other], [new, other], [ready, other]]
    answers, pauses = iter(asked), list[float]()
    found = enlisted(fleet(folder, "name: a"), lambda: next(answers), pauses.append)
    assert [(t.name, t.runtimes) for t in found.targets] == [("a", ("onnxruntime",))]
    assert pauses == [1.0, 1.0]
    assert capsys.readouterr().err == "waiting for a: still finding out what can be run there\n"


def test_a_device_that_proves_nothing_is_not_waited_for_for_ever(folder: Path) -> None:
    ready = status("a")
    new = replace(ready, device=replace(ready.device, capabilities=()), state="probing")
    found = enlisted(fleet(folder, "name: a"), lambda: [new], lambda _: None)
    with pytest.raises(FleetFileError, match="it has proved none"):
        _ = found.targets
