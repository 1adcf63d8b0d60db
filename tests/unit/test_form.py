"""Which files are of one form: those that make a runtime take the same kernels on the same sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.form import form
from tests import zoo


def network(
    folder: Path, seed: int = 0, *, zero: int = 128, bias: float = 0.0, bound: float = 6.0, width: int = 4, name: str = "w"
) -> Path:
    """Input -> QDQ -> Conv with a quantised weight -> Clip."""
    chance = np.random.default_rng(seed)
    arrays = {
        name: chance.integers(-127, 127, (width, 3, 3, 3)).astype(np.int8), "ws": np.full(width, chance.uniform(0.01, 0.1), np.float32),
        "wz": np.zeros(width, np.int8), "b": np.full(width, bias, np.float32),
        "s": np.float32(chance.uniform(0.01, 0.1)), "z": np.uint8(zero), "low": np.float32(0), "high": np.float32(bound),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", [name, "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Conv", ["d", "wd", "b"], ["c"]),
        helper.make_node("Clip", ["c", "low", "high"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width, 6, 6])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name=f"made with {seed}")
    folder.mkdir(exist_ok=True)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


def test_weights_scales_and_biases_do_not_matter(tmp_path: Path) -> None:
    assert form(network(tmp_path / "a", 0)) == form(network(tmp_path / "b", 1, bias=0.5)) != ""


@pytest.mark.parametrize(
    "changed",
    [
        lambda folder: network(folder, zero=0),
        lambda folder: network(folder, zero=77),
        lambda folder: network(folder, bound=5.0),
        lambda folder: network(folder, width=5),
    ],
    ids=["zero point at an end", "zero point elsewhere", "value that is no weight", "shape"],
)
def test_what_a_kernel_may_hang_on_does(changed: Callable[[Path], Path], tmp_path: Path) -> None:
    assert form(network(tmp_path / "a")) != form(changed(tmp_path / "b"))


def test_a_weight_that_something_else_reads_too_is_told_by_its_values(tmp_path: Path) -> None:
    paths = [network(tmp_path / str(seed), seed, name="shared") for seed in (0, 1)]
    for path in paths:
        model = onnx.load(str(path))
        model.graph.node.append(helper.make_node("NonZero", ["shared"], ["found"]))
        model.graph.output.append(helper.make_tensor_value_info("found", TensorProto.INT64, [4, None]))
        onnx.save(model, str(path))
    assert form(paths[0]) != form(paths[1])


def test_weights_beside_the_file_are_left_alone(tmp_path: Path) -> None:
    whole, apart = network(tmp_path / "a", 0), network(tmp_path / "b", 1)
    onnx.save(onnx.load(str(apart)), str(apart), save_as_external_data=True, size_threshold=100, location="weights.bin")
    assert form(whole) == form(apart)


def test_other_formats_have_none(tmp_path: Path) -> None:
    assert form(tmp_path / "model.tflite") == ""
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert form(tmp_path / "broken.onnx") == ""
    assert form(zoo.convolution(tmp_path, channels=4)) != ""
