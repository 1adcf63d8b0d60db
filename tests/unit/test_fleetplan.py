"""Which candidates a device measures, what it compares them with, and why it cannot take part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from controller.config.fleet import Target
from controller.config.lines import Document
from controller.config.measure import Where
from controller.config.schema import Constraints
from controller.evidence import Evaluation, Group
from controller.fleetplan import Build, Setting, Unable, formats_expected, formats_run, group
from edgefarm.errors import FleetFileError
from edgefarm.model import Artifact, Capability, Device, DeviceStatus, FileEntry, Io, Reduction, Scenario, TensorMap

SETTING = Setting("r@1", "m", "sha256:inputs", Evaluation((), Reduction()), None, ("stable",), 1)
ORT = Capability("onnxruntime", "CPUExecutionProvider", "1", True, "", ("onnx",), {"execution_provider": "CPUExecutionProvider"})
XNNPACK = Capability("tflite", "xnnpack", "2", True, "", ("tflite",), {"delegate": "xnnpack"})
BUILTIN = Capability("tflite", "none", "2", True, "", ("tflite",), {"delegate": "none"})
OPENVINO = Capability("openvino", "CPU", "3", True, "", ("openvino", "onnx", "tflite"), {"device": "CPU"})
BROKEN = replace(ORT, available=False, reason="illegal instruction")
IO = Io((TensorMap("x", "a"),), (TensorMap("y", "b"),))


def build(name: str, model_format: str, *, plain: bool = False, io: Io | None = None) -> Build:
    digest = f"sha256:{name:0>64.64}"
    return Build(Artifact(digest, 10, model_format, (FileEntry("f", digest, 10),)), name, io, plain)


SOURCE, INT8 = build("source", "onnx"), build("int8", "onnx")
TFLITE, TFLITE_INT8 = build("tflite", "tflite", plain=True, io=IO), build("tflite-int8", "tflite", io=IO)
XML = build("openvino", "openvino", plain=True)
BUILDS = (INT8, TFLITE, TFLITE_INT8, XML)


def planned(*capabilities: Capability, formats: tuple[str, ...] = (), source: Build = SOURCE, builds: tuple[Build, ...] = BUILDS) -> Group:
    groups, unable = plan(*capabilities, formats=formats, source=source, builds=builds)
    assert not unable
    return groups[0]


def plan(
    *capabilities: Capability, formats: tuple[str, ...] = (), source: Build = SOURCE, builds: tuple[Build, ...] = BUILDS
) -> tuple[list[Group], list[Unable]]:
    device = Device("d", "id", "h", {}, {"cpu": "x"}, capabilities)
    target = Target("d", ("onnxruntime", "tflite", "openvino"), 1, (1,), {}, "latency_p50", Constraints(), formats)
    return group(source, builds, [(target, DeviceStatus(device, "c", "ready"))], SETTING)


def pairs(found: Group) -> list[tuple[str, str]]:
    return [(e.variant, e.candidate.runtime) for e in found.entries]


def test_every_file_in_every_runtime_that_opens_it() -> None:
    assert pairs(planned(ORT, OPENVINO, BUILTIN)) == [
        ("source", "onnxruntime"), ("source", "openvino"), ("int8", "onnxruntime"), ("int8", "openvino"),
        ("tflite", "openvino"), ("tflite", "tflite"), ("tflite-int8", "openvino"), ("tflite-int8", "tflite"), ("openvino", "openvino"),
    ]  # fmt: skip


def test_mappings_and_options_are_kept() -> None:
    found = planned(XNNPACK, BUILTIN)
    assert [(e.candidate.options["delegate"], e.candidate.io) for e in found.entries] == [("xnnpack", IO), ("none", IO)] * 2


def test_the_source_in_its_own_runtime_is_the_baseline() -> None:
    base = planned(OPENVINO, ORT).baseline
    assert (base.variant, base.candidate.runtime, base.note) == ("source", "onnxruntime", "")
    base = planned(OPENVINO, XNNPACK, BUILTIN, source=replace(TFLITE, io=None), builds=()).baseline
    assert (base.candidate.runtime, base.candidate.options["delegate"]) == ("tflite", "xnnpack")


def test_a_stand_in_says_so() -> None:
    base = planned(OPENVINO, BROKEN).baseline
    assert (base.variant, base.candidate.runtime) == ("source", "openvino")
    assert base.note == "the source's own file in openvino: onnxruntime illegal instruction"
    base = planned(XNNPACK, BUILTIN).baseline
    assert (base.variant, base.candidate.runtime, base.candidate.options["delegate"]) == ("tflite", "tflite", "xnnpack")
    assert base.note == "stands in for the source, which it was converted from: onnxruntime is not among its runtimes"
    assert base.baseline
    assert sum(e.baseline for e in planned(XNNPACK, BUILTIN).entries) == 1


def test_a_quantised_conversion_never_stands_in() -> None:
    groups, unable = plan(XNNPACK, builds=(INT8, TFLITE_INT8))
    assert groups == []
    reason = "it cannot run the source: onnxruntime is not among its runtimes"
    wanted = "; tflite-int8 is no plain conversion, so it can't stand in: give a float one under model.alternatives"
    assert unable[0].reason == reason + wanted
    assert plan(XNNPACK, builds=(INT8,))[1][0].reason == reason


def test_formats_that_programs_do_not_expect_are_left_out() -> None:
    assert pairs(planned(ORT, XNNPACK, OPENVINO, formats=("onnx",))) == [
        ("source", "onnxruntime"), ("source", "openvino"), ("int8", "onnxruntime"), ("int8", "openvino"),
    ]  # fmt: skip
    groups, unable = plan(XNNPACK, formats=("onnx",))
    assert groups == []
    assert unable[0].reason.endswith("it could run tflite, but the programs there load onnx files: name tflite under 'runtimes'")


@pytest.mark.parametrize(
    ("capabilities", "formats", "expected"),
    [
        ((ORT,), (), {"onnx"}),
        ((BROKEN, XNNPACK), (), {"tflite"}),
        ((OPENVINO,), (), {"onnx", "tflite", "openvino"}),
        ((OPENVINO,), ("onnx",), {"onnx"}),
        ((BROKEN,), (), set()),
    ],
)
def test_formats_that_are_worth_making(capabilities: tuple[Capability, ...], formats: tuple[str, ...], expected: set[str]) -> None:
    target = Target("d", ("onnxruntime", "tflite", "openvino"), 1, (1,), {}, "latency_p50", Constraints(), formats)
    assert formats_run([(target, DeviceStatus(Device("d", "i", "h", capabilities=capabilities), "c", "ready"))]) == expected


def test_formats_before_any_device_has_spoken() -> None:
    target = Target("d", ("tflite",), 1, (1,), {}, "latency_p50", Constraints())
    assert formats_expected([target]) == {"tflite"}
    assert formats_expected([target, replace(target, runtimes=("openvino", "onnxruntime"), formats=("onnx",))]) == {"tflite", "onnx"}


def three_devices(setting: Setting, **labels: dict[str, str]) -> list[Group]:
    """Devices a and b of class c under different limits, and d of class e."""
    devices = []
    for name, device_class, constraints in (("a", "c", Constraints()), ("b", "c", Constraints(size_mib=1)), ("d", "e", Constraints())):
        device = Device(name, name, "h", labels.get(name, {}), {"cpu": device_class}, (ORT,))
        target = Target(name, ("onnxruntime",), 1, (1,), {}, "latency_p50", constraints)
        devices.append((target, DeviceStatus(device, device_class, "ready")))
    return group(SOURCE, (INT8,), devices, setting)[0]


def where(**selector: str | list[str]) -> Where:
    return Where(selector, Document(Path("edge.yaml"), None, {("measure", "where"): 7}))


def test_devices_that_measure_for_their_class() -> None:
    groups = three_devices(replace(SETTING, where=where(room=["lab", "roof"])), b={"room": "lab"}, d={"room": "roof"})
    assert [(g.devices, g.only_on) for g in groups] == [(("a",), ("b",)), (("b",), ("b",)), (("d",), ("d",))]
    assert [g.only_on for g in three_devices(SETTING)] == [(), (), ()]


def test_a_class_of_which_none_measures_is_an_error() -> None:
    message = r"edge.yaml:7: measure.where: no device with room=lab is of the same class as d: nothing could be measured for it"
    with pytest.raises(FleetFileError, match=message):
        three_devices(replace(SETTING, where=where(room="lab")), b={"room": "lab"})


def test_one_power_sensor_serves_its_class() -> None:
    assert [g.power for g in three_devices(SETTING, b={"power": "ina3221"}, d={"power": ""})] == [True, True, False]


def test_what_the_file_says_of_measuring_reaches_every_group() -> None:
    scenario = Scenario("server", 30.0, duration_ns=10**9)
    for found in three_devices(replace(SETTING, scenario=scenario, window="22:00-05:00", fail_on_fallback=True)):
        assert (found.scenario, found.window, found.fail_on_fallback) == (scenario, "22:00-05:00", True)
