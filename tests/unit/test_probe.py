"""What a device says of itself."""

from __future__ import annotations

import importlib.metadata
import json
import os
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import agent.runtimes
from agent import probe
from agent.probe import cached_capabilities, emulation, fingerprint, host_id, labels, probe_capabilities
from agent.runner.process import Cancelled
from agent.runtimes import RUNTIMES, Library, RuntimeEntry, installed_library
from edgefarm.model import Device
from tests.fixtures.trees import BARE, LAPTOP, PI4, plant


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_a_capability_is_proved_by_running(lock: Path) -> None:
    (found,) = (c for c in probe_capabilities(["onnxruntime"], lock=lock) if c.runtime == "onnxruntime")
    assert (found.runtime, found.provider, found.available, found.reason) == ("onnxruntime", "CPUExecutionProvider", True, "")
    assert found.version[0].isdigit()
    assert found.formats == ("onnx",)
    assert found.options == {"execution_provider": "CPUExecutionProvider"}


def test_every_runtime_of_the_table_appears_with_its_reason(monkeypatch: pytest.MonkeyPatch, lock: Path) -> None:
    monkeypatch.setitem(
        RUNTIMES, "absent", RuntimeEntry("agent.runtimes.absent:Absent", ("abs",), "absent", (Library("no_such_module", "absent"),))
    )
    monkeypatch.setitem(
        RUNTIMES, "unknown", RuntimeEntry("agent.runtimes.unknown:X", ("x",), "unknown", (Library("json", "no-such-distribution"),))
    )
    found = {c.runtime: c for c in probe_capabilities(["absent", "unknown"], lock=lock)}
    assert found["onnxruntime"].reason == "not allowed by the agent's configuration"
    assert found["absent"].reason == "runtime 'absent' needs: pip install 'edgefarm[absent]'"
    assert "unknown runtime 'unknown'" in found["unknown"].reason  # the runner does not know the row: said, not raised
    assert not any(c.available for c in found.values())
    assert found["absent"].formats == ("abs",)


def test_the_second_probe_comes_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lock: Path) -> None:
    first = probe_capabilities(None, tmp_path, lock=lock)
    monkeypatch.setattr(probe, "RunnerProcess", None)  # nothing may be started now
    assert probe_capabilities(None, tmp_path, lock=lock) == first
    assert cached_capabilities(None, tmp_path) == first
    assert cached_capabilities(["other"], tmp_path) is None
    monkeypatch.setattr(probe, "host_id", lambda: "another boot")
    assert cached_capabilities(None, tmp_path) is None


def test_what_was_proved_counts_although_it_cannot_be_kept(tmp_path: Path, lock: Path) -> None:
    (tmp_path / "probe.json").mkdir()
    found = probe_capabilities(["onnxruntime"], tmp_path, lock=lock)
    assert [c.available for c in found if c.runtime == "onnxruntime"] == [True]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"key": 1}', b'{"key": KEY, "capabilities": [{"odd": 1}]}'])
def test_a_damaged_cache_is_no_cache(content: bytes, tmp_path: Path) -> None:
    key = json.dumps(probe._cache_key(None)).encode()
    (tmp_path / "probe.json").write_bytes(content.replace(b"KEY", key))
    assert cached_capabilities(None, tmp_path) is None
    assert cached_capabilities(None, None) is None


def test_runners_stay_in_the_scratch_folder_that_is_given(tmp_path: Path, lock: Path) -> None:
    """A killed agent leaves its probe's folder; one of its own, which the next agent empties, and not in the machine's."""
    found: list[Path] = []

    def cancelled() -> bool:
        found.extend(tmp_path.glob("edgefarm-probe-*/runs-*"))
        return bool(found)

    with pytest.raises(Cancelled):
        probe_capabilities(["onnxruntime"], lock=lock, cancelled=cancelled, scratch=tmp_path)
    assert found
    assert list(tmp_path.glob("edgefarm-probe-*")) == []


def test_a_cancelled_probe_leaves_no_cache(tmp_path: Path, lock: Path) -> None:
    with pytest.raises(Cancelled):
        probe_capabilities(None, tmp_path, lock=lock, cancelled=lambda: True)
    assert not (tmp_path / "probe.json").exists()


def test_fingerprint_of_a_board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    found = fingerprint(2, plant(PI4, tmp_path))
    assert found["cpu"] == "Raspberry Pi 4 Model B"
    assert found["simd"] == "asimd"
    assert found["memory_gib"] == "4"
    assert found["os"] == "debian 12"
    assert found["threads"] == "2"
    assert found["onnxruntime"]


def test_fingerprint_of_a_laptop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    found = fingerprint(1, plant(LAPTOP, tmp_path))
    assert found["cpu"] == "Example(R) CPU @ 2.40GHz"
    assert found["simd"] == "sse4_2 avx avx2 fma avx512_vnni"
    assert found["os"] == "ubuntu 24.04"


@pytest.mark.parametrize(
    ("kib", "gib"), [(3884092, "4"), (3999999, "4"), (7800000, "8"), (16000000, "16"), (25276502, "32"), (25000000, "24"), (450000, "0.5")]
)
def test_memory_is_rounded_up_to_what_was_bought(kib: int, gib: str, tmp_path: Path) -> None:
    plant({"proc/meminfo": f"MemTotal: {kib} kB\n"}, tmp_path)
    assert fingerprint(1, tmp_path)["memory_gib"] == gib


def test_serials_and_boots_do_not_split_a_class(tmp_path: Path) -> None:
    one = fingerprint(1, plant(PI4, tmp_path / "a"))
    changed = {
        **PI4, "proc/sys/kernel/random/boot_id": "other\n", "proc/device-tree/serial-number": "1\0",
        "proc/cpuinfo": PI4["proc/cpuinfo"] + "\nSerial\t\t: 10000000abcdef01\nRevision\t: c03115\n", "proc/version": "Linux version 6.1.1",
    }  # fmt: skip
    two = fingerprint(1, plant(changed, tmp_path / "b"))
    device = Device("a", "1", "h", fingerprint=one)
    assert device.device_class == replace(device, name="b", fingerprint=two).device_class
    assert device.device_class != replace(device, fingerprint=fingerprint(2, tmp_path / "a")).device_class


def test_labels_name_the_board(tmp_path: Path) -> None:
    found = labels(plant(PI4, tmp_path))
    assert {"board": "raspberry-pi-4-model-b", "soc": "bcm2711", "ram_gib": "4", "os": "debian-12"}.items() <= found.items()


@pytest.mark.parametrize(
    ("compatible", "soc"),
    [
        ("nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0", "tegra234"),
        ("rockchip,rk3588\0", "rk3588"),
        ("plain\0", "plain"),
    ],
)
def test_the_soc_is_the_most_general_name(compatible: str, soc: str, tmp_path: Path) -> None:
    assert labels(plant({"sys/firmware/devicetree/base/compatible": compatible}, tmp_path))["soc"] == soc


def test_labels_without_a_board(tmp_path: Path) -> None:
    assert {"arch", "os"} <= set(labels(plant(BARE, tmp_path))) <= {"arch", "os", "ram_gib", "runtimes"}


def test_labels_and_fingerprint_have_the_runtimes_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_version", lambda name: {"onnxruntime": "1.0", "tflite": "2.0"}.get(name, ""))
    assert labels()["runtimes"] == "onnxruntime,tflite"
    assert labels(allowed=["tflite", "openvino"])["runtimes"] == "tflite"
    assert "runtimes" not in labels(allowed=[])
    both, one = fingerprint(1), fingerprint(1, allowed=["tflite"])
    assert (both["onnxruntime"], both["tflite"], "openvino" in both) == ("1.0", "2.0", False)
    assert {**one, "onnxruntime": "1.0"} == both
    assert "onnxruntime" not in one


_CLOCKS = "sys/devices/system/clocksource/clocksource0/available_clocksource"
_CORTEX_A72 = "processor\t: 0\nBogoMIPS\t: {}\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n"
_VIRT = {"proc/device-tree/model": "linux,dummy-virt\0"}
_X86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: {}\nflags\t\t: fpu hypervisor\n"


@pytest.mark.parametrize(
    ("machine", "tree", "how"),
    [
        ("aarch64", {"proc/cpuinfo": _X86.format("AMD EPYC")}, "programs for arm are translated on a processor of x86"),
        ("armv7l", {"proc/cpuinfo": _X86.format("AMD EPYC")}, "programs for arm are translated on a processor of x86"),
        # a newer QEMU makes up the processor as well, but not the name that the kernel gives itself
        ("aarch64", {"proc/cpuinfo": _CORTEX_A72.format("100.00"), "proc/sys/kernel/arch": "x86_64\n"}, "on a processor of x86"),
        ("x86_64", {"proc/cpuinfo": _CORTEX_A72.format("108.00")}, "programs for x86 are translated on a processor of arm"),
        ("aarch64", {**_VIRT, "proc/cpuinfo": _CORTEX_A72.format("125.00")}, "QEMU TCG"),
        ("aarch64", {"sys/class/dmi/id/sys_vendor": "QEMU\n", "proc/cpuinfo": _CORTEX_A72.format("125.00")}, "QEMU TCG"),
        ("aarch64", {"proc/cpuinfo": "BogoMIPS : 2000.00\nCPU implementer : 0x00\nCPU part : 0x051\n"}, "QEMU TCG"),
        ("x86_64", {"proc/cpuinfo": _X86.format("QEMU TCG CPU version 2.5+")}, "(QEMU TCG CPU version 2.5+)"),
        ("x86_64", {"proc/cpuinfo": _X86.format("QEMU Virtual CPU version 2.5+"), _CLOCKS: "tsc hpet acpi_pm\n"}, "(QEMU Virtual CPU"),
    ],
)  # fmt: skip
def test_an_emulated_processor(machine: str, tree: dict[str, str], how: str, tmp_path: Path) -> None:
    assert how in emulation(plant(tree, tmp_path), machine)


@pytest.mark.parametrize(
    ("machine", "tree"),
    [
        ("aarch64", PI4),
        ("armv7l", {**PI4, "proc/sys/kernel/arch": "aarch64\n"}),  # 32-bit programs, on the processor itself
        ("x86_64", LAPTOP),
        ("i686", {**LAPTOP, "proc/sys/kernel/arch": "x86_64\n"}),
        ("aarch64", {**_VIRT, "proc/cpuinfo": _CORTEX_A72.format("243.75")}),  # under a hypervisor
        ("aarch64", {"proc/cpuinfo": _CORTEX_A72.format("125.00")}),
        ("x86_64", {"proc/cpuinfo": _X86.format("QEMU Virtual CPU version 2.5+"), _CLOCKS: "kvm-clock tsc acpi_pm\n"}),
        ("x86_64", {"proc/cpuinfo": _X86.format("QEMU Virtual CPU version 2.5+")}),  # it can't be told
        ("x86_64", {"sys/class/dmi/id/sys_vendor": "QEMU\n", "proc/cpuinfo": _X86.format("AMD EPYC"), _CLOCKS: "tsc\n"}),
        ("riscv64", BARE),
    ],
)  # fmt: skip
def test_a_processor_that_is_not_emulated_or_may_be_not(machine: str, tree: dict[str, str], tmp_path: Path) -> None:
    assert emulation(plant(tree, tmp_path), machine) == ""


def test_an_emulated_device_shares_no_class_with_a_real_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    real = fingerprint(1, plant({**PI4, **_VIRT, "proc/cpuinfo": _CORTEX_A72.format("108.00")}, tmp_path / "a"))
    emulated = fingerprint(1, plant({**PI4, **_VIRT, "proc/cpuinfo": _CORTEX_A72.format("125.00")}, tmp_path / "b"))
    assert "emulated" not in real
    assert emulated == {**real, "emulated": "a virtual machine without hardware support (QEMU TCG)"}


def test_a_translated_program_has_not_the_instructions_of_the_processor_below(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    root = plant({**BARE, "proc/cpuinfo": "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: sse4_2 avx2\n"}, tmp_path)
    found = fingerprint(1, root)
    assert (found["cpu"], found["simd"]) == ("AMD EPYC", "")
    assert found["emulated"] == "programs for arm are translated on a processor of x86"
    assert labels(root)["emulated"] == "yes"


def test_a_translator_of_programs_for_its_own_processor_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """QEMU answers for /proc/self/exe, and only where the path is written so."""
    root, truth = plant(PI4, tmp_path), os.readlink
    answers = {f"{root}/proc/self/exe": "/usr/bin/python3", f"{root}/proc//self/exe": "/usr/bin/qemu-aarch64-static"}

    def readlink(path: str) -> str:
        return answers.get(path) or truth(path)

    monkeypatch.setattr(os, "readlink", readlink)
    assert emulation(root, "aarch64") == "programs are translated by qemu-aarch64-static"


def test_host_id_is_the_boot_id(tmp_path: Path) -> None:
    assert host_id(plant(PI4, tmp_path)) == "3f1c9f0e-5c1a-4c7e-9f43-2b8d5a1f0c11"
    assert host_id() == host_id()
    assert host_id(tmp_path / "nothing")


def test_the_probe_model_is_what_the_protocol_promises() -> None:
    model = onnx.load(Path(agent.runtimes.__file__).with_name("probe.onnx"))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xy")
    assert list(model.graph.input) == [x]
    assert list(model.graph.output) == [y]
    assert [(n.op_type, list(n.input)) for n in model.graph.node] == [("MatMul", ["x", "x"]), ("Add", ["s", "one"])]
    assert (model.opset_import[0].version, model.ir_version) == (9, 4)


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_versions_are_those_that_the_installer_recorded(name: str) -> None:
    library = installed_library(name)
    if library is None:
        pytest.skip(f"runtime {name!r} is not installed here: nothing to compare")
    assert probe.runtime_versions()[name] == importlib.metadata.version(library.distribution)


def test_a_version_recorded_in_another_form_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(()))
    library = installed_library("onnxruntime")
    assert library is not None
    assert probe.runtime_versions(["onnxruntime"])["onnxruntime"] == importlib.metadata.version(library.distribution)
