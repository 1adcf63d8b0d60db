"""The committed examples are what their READMEs say, and the checkpoint reader runs no one's code."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import re
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from controller.config.schema import FleetFile, MetricFunction
from tests.examples import EXAMPLES, FASHION, IMAGENET, KERAS, MINILM, MIXED, OCR, fleet_of, script

SPLITS = {"calibration": 300, "selection": 700, "evaluation": 1500}


checkpoint = script(IMAGENET, "checkpoint")
lite0 = script(IMAGENET, "lite0")
images = script(FASHION, "images")


def split(name: str) -> dict[str, NDArray[Any]]:
    with np.load(FASHION / f"{name}.npz", allow_pickle=False) as archive:
        return dict(archive)


# --- fashion: the committed files


@pytest.mark.parametrize(("name", "count"), SPLITS.items())
def test_each_split_holds_what_the_network_takes(name: str, count: int) -> None:
    x = split(name)["x"]
    assert (x.dtype, x.shape) == (np.dtype(np.float32), (count, 1, 28, 28))
    pixels = np.rint(x * 255)
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert np.array_equal(images.as_input(pixels[:, 0].astype(np.uint8)), x)


@pytest.mark.parametrize("name", ["selection", "evaluation"])
def test_labelled_splits_hold_every_class_equally_often(name: str) -> None:
    label = split(name)["label"]
    assert label.dtype == np.int64
    assert np.bincount(label, minlength=10).tolist() == [SPLITS[name] // 10] * 10


def test_calibration_holds_inputs_only() -> None:
    assert list(split("calibration")) == ["x"]


def test_no_image_is_in_two_splits() -> None:
    seen = [image.tobytes() for name in SPLITS for image in split(name)["x"]]
    assert len(set(seen)) == len(seen) == 2500


def test_the_network_is_plain_onnx_with_a_free_batch_axis() -> None:
    path = FASHION / "model.onnx"
    model = onnx.load(path)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    assert "BatchNormalization" not in {n.op_type for n in model.graph.node}
    assert not any(n.metadata_props for n in model.graph.node), "the exporter's traces name files of the machine that trained"
    weights = sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert 650_000 < weights < 750_000
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [("x", "tensor(float)", ["N", 1, 28, 28])]
    x = split("evaluation")["x"][:3]
    together = session.run(["logits"], {"x": x})[0]
    assert together.shape == (3, 10)
    np.testing.assert_allclose(together, np.concatenate([session.run(["logits"], {"x": x[i : i + 1]})[0] for i in range(3)]), atol=1e-4)


def test_the_tflite_file_is_the_same_network() -> None:
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason="the same network in TFLite: needs pip install 'edgefarm[tflite]'")
    model = litert.Interpreter(str(FASHION / "model.tflite"), num_threads=1)
    model.allocate_tensors()
    (taken,), (given,) = model.get_input_details(), model.get_output_details()
    assert (taken["shape"].tolist(), taken["dtype"]) == ([1, 28, 28, 1], np.float32)
    session = onnxruntime.InferenceSession(FASHION / "model.onnx", providers=["CPUExecutionProvider"])
    for image in split("selection")["x"][:100]:
        model.set_tensor(taken["index"], image.transpose(1, 2, 0)[None])
        model.invoke()
        np.testing.assert_allclose(model.get_tensor(given["index"]), session.run(["logits"], {"x": image[None]})[0], atol=1e-4)


@pytest.mark.parametrize("name", ["selection", "evaluation"])
def test_the_readme_tells_the_true_accuracy(name: str) -> None:
    data = split(name)
    session = onnxruntime.InferenceSession(FASHION / "model.onnx", providers=["CPUExecutionProvider"])
    top1 = float(np.mean(session.run(["logits"], {"x": data["x"]})[0].argmax(1) == data["label"]))
    told = re.search(rf"\| {name} \| ([\d,]+) \| (0\.\d+) \|", (FASHION / "README.md").read_text())
    assert told is not None
    assert int(told[1].replace(",", "")) == len(data["label"])
    assert top1 == pytest.approx(float(told[2]), abs=0.0005 + 1 / len(data["label"])), "within rounding and one image on another CPU"
    assert top1 > 0.91


def test_the_committed_example_stays_small() -> None:
    files = [*(f"{name}.npz" for name in SPLITS), "model.onnx", "model.tflite"]
    assert sum((FASHION / name).stat().st_size for name in files) < 9 * 2**20


# --- fleet files


@pytest.mark.parametrize(
    ("folder", "threads", "drop"),
    [(FASHION, {"bench-1": 1, "bench-2": 2}, 0.01), (IMAGENET, {"bench-1": 1}, 0.05)],
    ids=["fashion", "imagenet"],
)
def test_plain_fleet_files_ask_for_local_devices_only(folder: Path, threads: dict[str, int], drop: float) -> None:
    fleet = fleet_of(folder)
    assert set(fleet) == {"version", "name", "model", "data", "devices", "optimize", "select", "rollout"}
    assert {d["name"]: d["local"]["threads"] for d in fleet["devices"]} == threads
    assert all(d["local"]["runtimes"] == ["onnxruntime"] for d in fleet["devices"])
    assert fleet["select"] == {"objective": "latency_p50", "constraints": {"accuracy_drop": drop}}
    assert fleet["data"]["metric"] == "top1"


@pytest.mark.parametrize("folder", [FASHION, IMAGENET, OCR, MIXED, KERAS, MINILM], ids=lambda p: p.name)
def test_fleet_files_have_the_schema_and_say_what_they_are(folder: Path) -> None:
    fleet = FleetFile.model_validate(fleet_of(folder))
    assert (fleet.version, fleet.name, fleet.rollout.activate) == (1, folder.name, "file")
    assert all(d.local is not None for d in fleet.devices)


def test_the_ocr_devices_share_trials_and_differ_in_their_limit_only() -> None:
    fleet = FleetFile.model_validate(fleet_of(OCR))
    gate, archive = fleet.devices
    assert gate.local == archive.local
    assert (gate.constraints, fleet.select.constraints.accuracy_drop) == (None, 0.01)
    assert archive.constraints is not None
    assert archive.constraints.accuracy_drop == 0
    assert isinstance(fleet.data.metric, MetricFunction)
    assert fleet.data.metric.function == "metric.py:score"


def test_the_mixed_devices_have_one_runtime_each() -> None:
    fleet = FleetFile.model_validate(fleet_of(MIXED))
    assert [d.local.runtimes for d in fleet.devices if d.local] == [["onnxruntime"], ["tflite"], ["openvino"]]
    assert fleet.model.alternatives == ["../fashion/model.tflite"]


@pytest.mark.parametrize("folder", [FASHION, MIXED], ids=lambda p: p.name)
def test_every_file_that_the_fleet_names_is_there(folder: Path) -> None:
    fleet = fleet_of(folder)
    names = [fleet["model"]["path"], *fleet["model"].get("alternatives", []), *(v for k, v in fleet["data"].items() if k != "metric")]
    assert [n for n in names if not (folder / n).is_file()] == []


@pytest.mark.parametrize(
    "path", sorted(p for p in EXAMPLES.glob("*/*") if p.suffix in {".py", ".yaml", ".md", ".txt"}), ids=lambda p: p.name
)
def test_examples_name_no_machine(path: Path) -> None:
    assert re.findall(r"/(w[o]rk|tmp|root|home)/|localhost|index-url|find-links", path.read_text()) == []


# --- fashion: how the splits are made


def idx(rank_code: bytes, shape: tuple[int, ...], content: bytes) -> bytes:
    return gzip.compress(b"\x00\x00" + rank_code + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content)


def test_idx_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(idx(b"\x08", (2, 2, 3), bytes(range(12))))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(b"\x08", (2,), b"\x07\x09"))
    pictures, labels = images.load(tmp_path, "t10k")
    assert pictures.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    assert (labels.dtype, labels.tolist()) == (np.int64, [7, 9])


def test_other_idx_types_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"train-images-idx3-ubyte\.gz is missing"):
        images.load(tmp_path, "train")
    (tmp_path / "floats.gz").write_bytes(idx(b"\x0d", (1,), b"\0\0\0\0"))
    with pytest.raises(SystemExit, match=r"floats\.gz: not an IDX file of unsigned bytes"):
        images.read_idx(tmp_path / "floats.gz")


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_stratified_parts_are_disjoint_complete_and_balanced(first: int, second: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(10), 7))
    parts = images.stratified(labels, [10 * first, 10 * second], seed)
    assert [len(p) for p in parts] == [10 * first, 10 * second, 70 - 10 * first - 10 * second]
    assert sorted(np.concatenate(parts).tolist()) == list(range(70))
    assert all(np.bincount(labels[p], minlength=10).tolist() == [len(p) // 10] * 10 for p in parts)


# --- imagenet: the checkpoint reader


class FakeStorage:
    """A run of float32 values that tensors look into."""

    def __init__(self, key: str, values: list[float]) -> None:
        self.key, self.values = key, values


class FakeTensor:
    """Pickles as torch's tensors do: a call of `_rebuild_tensor_v2` on a reference to a storage."""

    def __init__(self, storage: FakeStorage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.arguments: tuple[object, ...] = (storage, offset, shape, stride, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class FakePickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        if isinstance(obj, FakeStorage):
            return ("storage", sys.modules["torch"].FloatStorage, obj.key, "cpu", len(obj.values), None)
        return None


@pytest.fixture
def fake_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives pickle the names that it writes down; torch itself is not needed."""
    torch, rebuild = ModuleType("torch"), ModuleType("torch._utils")
    storage_type = type("FloatStorage", (), {"__module__": "torch"})

    def _rebuild_tensor_v2(*_: object) -> None: ...

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    vars(torch)["FloatStorage"], vars(rebuild)["_rebuild_tensor_v2"] = storage_type, _rebuild_tensor_v2
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", rebuild)


def checkpoint_file(path: Path, state: object, storages: list[FakeStorage], magic: int = checkpoint.MAGIC) -> Path:
    """A file as torch.save wrote it before version 1.6."""
    stream = io.BytesIO()
    for value in (magic, checkpoint.PROTOCOL, {"little_endian": True}, state, [s.key for s in storages]):
        FakePickler(stream, protocol=2).dump(value)
    for storage in storages:
        stream.write(struct.pack("<q", len(storage.values)) + np.array(storage.values, "<f4").tobytes())
    path.write_bytes(stream.getvalue())
    return path


def test_tensors_are_read_whatever_their_strides(tmp_path: Path, fake_torch: None) -> None:
    shared = FakeStorage("a", [0, 1, 2, 3, 4, 5, 6])
    state = OrderedDict(
        plain=FakeTensor(shared, 1, (2, 3), (3, 1)),
        transposed=FakeTensor(shared, 0, (3, 2), (1, 3)),
        scalar=FakeTensor(shared, 6, (), ()),
        empty=FakeTensor(shared, 0, (0, 4), (4, 1)),
    )
    tensors = checkpoint.read_tensors(checkpoint_file(tmp_path / "w.pth", state, [shared]))
    assert {name: (t.tolist(), t.shape) for name, t in tensors.items()} == {
        "plain": ([[1, 2, 3], [4, 5, 6]], (2, 3)),
        "transposed": ([[0, 3], [1, 4], [2, 5]], (3, 2)),
        "scalar": (6, ()),
        "empty": ([], (0, 4)),
    }


class Call:
    """Pickles as a call of any function, as a stranger's file may."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.parts


@pytest.mark.parametrize(
    ("function", "name"), [(os.system, r"\w+\.system"), (eval, r"\w+\.eval"), (getattr, r"\w+\.getattr"), (np.dtype, r"numpy\.dtype")]
)
@pytest.mark.parametrize("place", ["object", "key", "storage", "value"])
def test_a_pickle_that_names_anything_else_is_refused(tmp_path: Path, fake_torch: None, function: Any, name: str, place: str) -> None:
    marker = tmp_path / "ran"
    call = Call(function, f"__import__('pathlib').Path({str(marker)!r}).touch()")
    if function is os.system:
        call = Call(function, f"touch {marker}")
    storage = FakeStorage("a", [1.0])
    state: dict[str, object] = {
        "object": {"w": call},
        "key": {"w": FakeTensor(storage, 0, (1,), (1,)), "call": [{"deep": call}]},
        "storage": {"w": Call(sys.modules["torch._utils"]._rebuild_tensor_v2, call, 0, (1,), (1,), False, None)},
        "value": {"w": Call(sys.modules["torch._utils"]._rebuild_tensor_v2, storage, call, (1,), (1,), False, None)},
    }
    path = checkpoint_file(tmp_path / "w.pth", state[place], [storage])
    with pytest.raises(checkpoint.CheckpointError, match=rf"w\.pth: the pickle asks for {name}, which no tensor needs"):
        checkpoint.read_tensors(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("offset", "shape", "stride", "reason"),
    [
        (0, (5,), (1,), "reaches beyond its 4 values"),
        (2, (2, 2), (2, 1), "reaches beyond its 4 values"),
        (0, (2,), (2**40,), "reaches beyond its 4 values"),
        (-1, (2,), (1,), "offset -1"),
        (3, (2,), (-1,), "stride"),
        (0, (2, 2), (1,), "stride"),
        (0, ("2",), (1,), "not supported"),
    ],
)
def test_no_tensor_shows_memory_beyond_its_values(
    tmp_path: Path, fake_torch: None, offset: int, shape: Any, stride: Any, reason: str
) -> None:
    storage = FakeStorage("a", [1, 2, 3, 4])
    path = checkpoint_file(tmp_path / "w.pth", {"w": FakeTensor(storage, offset, shape, stride)}, [storage])
    with pytest.raises(checkpoint.CheckpointError, match=reason):
        checkpoint.read_tensors(path)


def test_a_truncated_checkpoint_is_refused_at_every_length(tmp_path: Path, fake_torch: None) -> None:
    storage = FakeStorage("a", [1.0, 2.0])
    path = checkpoint_file(tmp_path / "w.pth", {"w": FakeTensor(storage, 0, (2,), (1,))}, [storage])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(checkpoint.CheckpointError, match=r"w\.pth: "):
            checkpoint.read_tensors(path)


def test_other_formats_are_refused(tmp_path: Path, fake_torch: None) -> None:
    with pytest.raises(checkpoint.CheckpointError, match=r"not a checkpoint in torch's format before 1\.6"):
        checkpoint.read_tensors(checkpoint_file(tmp_path / "w.pth", {}, [], magic=1))
    (tmp_path / "zip.pth").write_bytes(b"PK\x03\x04" + bytes(60))
    with pytest.raises(checkpoint.CheckpointError, match=r"zip\.pth"):
        checkpoint.read_tensors(tmp_path / "zip.pth")


# --- imagenet: the graph


@given(side=st.integers(1, 300), kernel=st.sampled_from([1, 3, 5]), stride=st.sampled_from([1, 2]))
def test_same_padding_gives_one_position_per_stride(side: int, kernel: int, stride: int) -> None:
    before, after = lite0.same_padding(side, kernel, stride)
    positions = (side + before + after - kernel) // stride + 1
    assert positions == -(-side // stride) or kernel < stride
    assert 0 <= after - before <= 1


def test_folding_keeps_what_convolution_and_normalisation_did() -> None:
    random = np.random.default_rng(0)
    kernel = random.normal(size=(4, 3, 1, 1)).astype(np.float32)
    weights = {f"bn.{part}": random.uniform(0.5, 2, 4).astype(np.float32) for part in ("weight", "bias", "running_mean", "running_var")}
    x = random.normal(size=3)
    plain = kernel[:, :, 0, 0] @ x
    normalised = (plain - weights["bn.running_mean"]) / np.sqrt(weights["bn.running_var"] + lite0.EPSILON)
    folded, bias = lite0.fold(kernel, "bn", weights)
    np.testing.assert_allclose(folded[:, :, 0, 0] @ x + bias, normalised * weights["bn.weight"] + weights["bn.bias"], rtol=1e-5)


class FakeWeights(dict[str, NDArray[Any]]):
    """Lite0's weights by name: kernels of zeros, normalisations that change nothing, class i's bias i."""

    def __init__(self) -> None:
        super().__init__({"_fc.weight": np.zeros((1000, 1280), np.float32), "_fc.bias": np.arange(1000, dtype=np.float32)})
        self.conv("_conv_stem", "_bn0", (32, 3, 3, 3))
        self.conv("_conv_head", "_bn1", (1280, 320, 1, 1))
        index, channels = 0, 32
        for stage in lite0.STAGES:
            for _ in range(stage.blocks):
                block, wide = f"_blocks.{index}", channels * stage.expansion
                if stage.expansion > 1:
                    self.conv(f"{block}._expand_conv", f"{block}._bn0", (wide, channels, 1, 1))
                self.conv(f"{block}._depthwise_conv", f"{block}._bn1", (wide, 1, stage.kernel, stage.kernel))
                self.conv(f"{block}._project_conv", f"{block}._bn2", (stage.channels, wide, 1, 1))
                index, channels = index + 1, stage.channels

    def conv(self, name: str, norm: str, shape: tuple[int, ...]) -> None:
        self[f"{name}.weight"] = np.zeros(shape, np.float32)
        for part, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self[f"{norm}.{part}"] = np.full(shape[0], value, np.float32)


def test_the_graph_is_valid_and_takes_any_batch() -> None:
    model = lite0.build(FakeWeights())
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"x": np.zeros((2, 3, 224, 224), np.float32)})[0]
    assert np.array_equal(logits, [np.arange(1000)] * 2)
    assert {n.op_type for n in model.graph.node} == {"Conv", "Clip", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
