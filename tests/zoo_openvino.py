"""Small OpenVINO models and samples for what OpenVINO reads; needs `openvino`. Everything is seeded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agent.runtimes.openvino import ov  # through the adapter, which keeps the library from calling home
from tests import zoo
from tests.zoo import Array, Build


def converted(build: Build) -> Build:
    """The .xml and .bin of an ONNX model."""

    def write(folder: Path) -> Path:
        return _save(ov.Core().read_model(str(build(folder))), folder)

    return write


def _save(model: ov.Model, folder: Path) -> Path:
    path = folder / "model.xml"
    ov.save_model(model, str(path), compress_to_fp16=False)
    return path


dense = converted(zoo.dense)


def hidden_state(folder: Path) -> Path:
    """x: float32[1, 16] -> y: float32[1, 16], the sum of all that was fed so far."""
    from openvino import opset6 as operators
    from openvino.op import Result
    from openvino.op.util import Variable, VariableInfo

    information = VariableInfo()
    information.data_shape, information.data_type, information.variable_id = ov.PartialShape([1, 16]), ov.Type.f32, "sum"
    variable = Variable(information)
    x = operators.parameter([1, 16], np.float32, name="x")
    total = operators.add(x, operators.read_value(operators.constant(np.zeros((1, 16), np.float32)), variable))
    x.output(0).set_names({"x"})
    total.output(0).set_names({"y"})
    return _save(ov.Model([Result(total.output(0))], [operators.assign(total, variable)], [x], "zoo"), folder)


def without_weights(folder: Path) -> Path:
    """`dense` whose .bin is missing."""
    path = dense(folder)
    path.with_suffix(".bin").unlink()
    return path


def short_weights(folder: Path) -> Path:
    """`dense` whose .bin is cut in the middle."""
    path = dense(folder)
    weights = path.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return path


def truncated(folder: Path) -> Path:
    """`dense` whose .xml is cut in the middle."""
    path = dense(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def unknown_operator(folder: Path) -> Path:
    """`dense` with an operator that no runtime has."""
    path = dense(folder)
    path.write_text(path.read_text().replace('type="ReLU"', 'type="Frobnicate"'))
    return path


MODELS: dict[str, Build] = {**{name: converted(build) for name, build in zoo.MODELS.items()}, "hidden_state": hidden_state}


def samples(model: Path, count: int = 4, open_axis: int = 5, seed: int = 0) -> Mapping[str, list[Array]]:
    """Inputs as a shard holds them: for each input one array per sample, batch axis included (1 where it is open)."""
    random = np.random.default_rng(seed)
    found: dict[str, list[Array]] = {}
    for port in ov.Core().read_model(str(model)).inputs:
        axes = enumerate(port.get_partial_shape())
        sizes = [axis.get_length() if axis.is_static else (open_axis if index else 1) for index, axis in axes]
        dtype = port.get_element_type().to_dtype()
        below = 2 if dtype.kind == "b" else 5
        values = (random.normal(size=sizes) if dtype.kind == "f" else random.integers(0, below, sizes) for _ in range(count))
        found[port.get_any_name()] = [value.astype(dtype) for value in values]
    return found
