"""An arm64 device, translated by QEMU: installed by the README's lines, and in a round beside a real one. Nothing here looks at speed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnxruntime
import pytest

from edgefarm.digest import digest_file
from tests import zoo
from tests.e2e.arm64 import Arm64, translated
from tests.e2e.command import Done, controller, environment
from tests.e2e.zoo_fleets import write_fleet
from tests.integration.serving import ANY_PORT, EnrolledAgent, ServeProcess

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "controller/report/schema.json").read_text())
SOURCES = ("Makefile", "agent", "controller", "optimizer", "proto", "deploy", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
HOW = "programs for arm are translated on a processor of x86"
_READY_S = 600.0
AGENT = "su -s /bin/sh edgefarm -c 'exec edge-agent run'"  # as the script says where there is no systemd
_RUN = """
import sys, numpy, onnxruntime
fed = numpy.load(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.savez(sys.argv[3], session.run(None, dict(fed))[0])
"""


@dataclass
class Device:
    """The arm64 device, and what its installation said."""

    arm: Arm64
    said: str


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("arm64")
    with translated(), Arm64(folder) as arm:
        shutil.move(_wheelhouse(folder), arm.root / "root/wheelhouse")
        yield Device(arm, arm("cd && sh wheelhouse/install.sh --enable"))


def _wheelhouse(folder: Path) -> Path:
    """What `make wheelhouse` leaves in a copy of the sources; this environment is not set up anew for it."""
    copy = folder / "sources"
    copy.mkdir()
    for name in SOURCES:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, copy / name)
    (copy / ".venv").symlink_to(sys.prefix)
    command = ["make", "-o", "setup", "wheelhouse", "MACHINE=aarch64", "PYTHON_VERSION=3.11"]
    made = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=1200)
    if "No matching distribution" in made.stderr:
        pytest.skip(f"NOT TESTED: an arm64 device under emulation: no wheels for it: {made.stderr[-500:]}")
    assert made.returncode == 0, made.stderr
    return copy / "wheelhouse"


def test_the_script_installs_without_systemd_and_says_so(device: Device) -> None:
    assert "no systemd here, so nothing was enabled" in device.said
    assert AGENT.replace("exec ", "") in device.said
    assert device.arm("edge-agent --version").startswith("edge-agent ")
    assert device.arm("stat -c %U:%a /var/lib/edgefarm").strip() == "edgefarm:710"
    assert not list((device.arm.root / "etc/systemd").rglob("edge-*"))


def test_it_proves_its_runtimes_and_says_that_it_is_emulated(device: Device) -> None:
    found = json.loads(device.arm("edge-agent probe --json"))
    assert (found["emulated"], found["fingerprint"]["emulated"]) == (True, HOW)
    assert {"arch": "aarch64", "emulated": "yes", "runtimes": "onnxruntime,tflite"}.items() <= found["labels"].items()
    assert found["fingerprint"]["architecture"] == "aarch64"
    assert not {"avx", "avx2", "sse4_2"} & set(found["fingerprint"]["simd"].split())  # those of the other processor
    assert {c["runtime"] for c in found["capabilities"] if c["available"]} == {"onnxruntime", "tflite"}, found["capabilities"]
    limits = found["runner_limits"]
    for part in ("processes", "network"):
        assert limits[part] == "not enforced: no seccomp filter on this kernel or processor (aarch64)"
    assert limits["file_writes"].startswith("not enforced: no Landlock")
    assert "RLIMIT_DATA" not in limits["memory"]
    assert limits["isolation"] == "a child process of the agent's user"


def test_a_runtime_that_crashes_there_is_a_reason(device: Device) -> None:
    """ONNX Runtime looks up the processor's cores in /sys, and the other processor's are no arm cores."""
    found = json.loads(device.arm("edge-agent probe --json --runtimes onnxruntime", sys=True))
    (ort,) = (c for c in found["capabilities"] if c["runtime"] == "onnxruntime")
    assert ort["available"] or ort["reason"] == "load: the runner was killed by SIGSEGV", ort
    assert found["fingerprint"]["onnxruntime"]


def test_it_benches_a_model_and_says_what_the_number_is(device: Device) -> None:
    zoo.dense(device.arm.root / "root")
    told = device.arm("cd && edge-agent bench model.onnx --threads 1 --launches 2 --json 2>/dev/null")
    report = json.loads(told)
    assert report["emulated"] is True
    assert report["latency_ns"]["n"] > 0
    assert report["summary"].endswith(f"; emulated, so no device's latency: {HOW}")


@dataclass
class Farm:
    """A running controller with two devices: `arm`, and `here`, this machine."""

    serving: ServeProcess
    folder: Path

    def __call__(self, *words: str) -> Done:
        return controller(*words, "--controller", self.serving.socket, cwd=self.folder, timeout_s=2400)

    def wait_until_ready(self) -> None:
        end = time.monotonic() + _READY_S
        while (states := {d["name"]: d["state"] for d in self.told("devices")["devices"]}) != {"arm": "ready", "here": "ready"}:
            assert time.monotonic() < end, f"{states}\n{(self.folder / 'arm.log').read_text()[-3000:]}"

    def told(self, *words: str) -> dict[str, Any]:
        done = self(*words, "--json")
        assert done.code == 0, done.stderr
        return done.document


@pytest.fixture(scope="module")
def farm(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    folder = tmp_path_factory.mktemp("farm")
    with ServeProcess(folder / "controller", "--listen", ANY_PORT, "--metrics", "127.0.0.1:0") as serving:
        made = Farm(serving, folder)
        token = made.told("token", "create", "--uses", "2")["token"]
        enroll = ["enroll", "--controller", serving.join, "--token", token, "--name"]
        here = [sys.executable, "-m", "agent.cli", *enroll, "here", "--state", str(folder / "here")]
        subprocess.run(here, check=True, env=environment(), capture_output=True)
        device.arm(f"edge-agent {' '.join(enroll)} arm")
        with (folder / "arm.log").open("wb") as log, device.arm.running(AGENT, log), EnrolledAgent(folder / "here"):
            made.wait_until_ready()
            yield made


@pytest.fixture(scope="module")
def fleet(farm: Farm) -> Path:
    """Two devices, one variant of a tiny model, every verdict: what is looked at is not the numbers."""
    folder = farm.folder / "fleet"
    folder.mkdir()
    path = write_fleet(folder, zoo.convolution(folder), name="both")
    document = json.loads(path.read_text())
    document["controller"] = farm.serving.socket
    document["devices"] = [{"name": name, "runtimes": ["onnxruntime"], "threads": [1]} for name in ("arm", "here")]
    document["measure"] = {"accept": ["stable", "noisy", "interfered", "unsteady"]}
    document["optimize"] = {"recipes": [{"name": "int8", "passes": [{"pass": "quantize_static"}]}]}
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def deployed(farm: Farm, fleet: Path) -> Done:
    done = farm("deploy", "--fleet", str(fleet), "--json")
    assert done.code == 0, f"{done.stderr[-3000:]}\n{(farm.folder / 'arm.log').read_text()[-3000:]}"
    return done


def test_a_round_beside_a_real_device(deployed: Done) -> None:
    report = deployed.document
    jsonschema.validate(report, SCHEMA)
    arm, here = report["devices"]
    assert (arm["name"], arm["emulated"], arm["fingerprint"]["emulated"]) == ("arm", True, HOW)
    assert (here["name"], here["emulated"], here["caveat"]) == ("here", False, None)
    assert arm["caveat"].startswith(f"emulated ({HOW})")
    assert f"arm: {arm['caveat']}" in deployed.stderr  # before it measured
    assert {d["deployment"]["state"] for d in (arm, here)} == {"committed"}
    assert all(d["winner"] and d["reason"] for d in (arm, here))


def test_nothing_is_shared_between_them(deployed: Done) -> None:
    arm, here = deployed.document["devices"]
    assert arm["class"] != here["class"]
    for device in (arm, here):
        assert {tuple(c["measured_on_all"]) for c in device["candidates"]} == {(device["name"],)}


def test_both_give_the_same_answers(deployed: Done) -> None:
    arm, here = ({c["variant"]: c["accuracy"] for c in d["candidates"] if c["accuracy"]} for d in deployed.document["devices"])
    assert "source" in arm.keys() & here.keys()
    for variant in arm.keys() & here.keys():
        assert arm[variant]["n"] == here[variant]["n"] == 24
        assert arm[variant]["value"] == pytest.approx(here[variant]["value"], abs=1e-3)


def test_what_is_deployed_there_answers_as_it_does_here(device: Device, deployed: Done, farm: Farm, tmp_path: Path) -> None:
    root = device.arm.root
    arm = deployed.document["devices"][0]
    model = root / arm["deployment"]["path"].lstrip("/")
    assert digest_file(model) == arm["winner"]["artifact"]["digest"]
    fed = {"x": np.random.default_rng(3).normal(size=(5, 3, 16, 16)).astype(np.float32)}
    shutil.copy(model, tmp_path / "model.onnx")
    shutil.copy(model, root / "root/deployed.onnx")
    np.savez(root / "root/fed.npz", allow_pickle=False, **fed)
    (root / "root/run.py").write_text(_RUN)
    device.arm("cd && /opt/edgefarm/current/bin/python run.py deployed.onnx fed.npz answers.npz")
    (there,) = np.load(root / "root/answers.npz").values()
    (here,) = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"]).run(None, fed)
    assert np.abs(there - here).max() <= 0.02 * np.abs(here).max()  # an integer may be rounded the other way


def test_who_looks_is_told(deployed: Done, farm: Farm) -> None:
    caveat = deployed.document["devices"][0]["caveat"]
    devices = {d["name"]: d for d in farm.told("devices")["devices"]}
    assert (devices["arm"]["emulated"], devices["arm"]["caveat"], devices["here"]["emulated"]) == (True, caveat, False)
    shown = farm("devices").stdout
    assert f"arm: {caveat}" in shown
    assert f"  {caveat}\n" in farm("report", "both").stdout
    with urllib.request.urlopen(f"http://{farm.serving.metrics.removeprefix('http://').rstrip('/')}/metrics", timeout=20) as reply:
        page = reply.read().decode()
    assert 'edgefarm_device_emulated{device="arm"} 1.0' in page
    assert 'edgefarm_device_emulated{device="here"} 0.0' in page


def test_it_stands_in_for_no_real_device(deployed: Done, farm: Farm, fleet: Path) -> None:
    document = {**json.loads(fleet.read_text()), "name": "boards"}
    for selector, code in (({"arch": "aarch64"}, 2), ({"arch": "aarch64", "emulated": "yes"}, 0)):
        path = fleet.with_name("boards.yaml")
        path.write_text(json.dumps({**document, "devices": [{"selector": selector}]}))
        done = farm("deploy", "--fleet", str(path), "--dry-run", "--json")
        assert done.code == code, done.stderr
        assert code == 0 or done.document["error"]["message"].endswith("emulated, so taken only with 'emulated: yes' in the selector: arm")


def test_it_is_removed_without_systemd(device: Device) -> None:
    assert "kept: /etc/edgefarm, /var/lib/edgefarm and the user edgefarm" in device.arm("cd && sh wheelhouse/install.sh --remove")
    found = {place: os.path.lexists(device.arm.root / place) for place in ("opt/edgefarm", "usr/local/bin/edge-agent", "etc/edgefarm")}
    assert found == {"opt/edgefarm": False, "usr/local/bin/edge-agent": False, "etc/edgefarm": True}
