"""`controller` with passes that make bad variants: `python -m tests.e2e.bad_passes VERB …`; `SPOILT` says what they are called.

A pass with `unchecked` also switches off the checks in its own process, so that its variant reaches the devices.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar, Literal

from optimizer import checks
from optimizer.passes import PASSES, Changed, PassParameters

NAME = "fake_bad"


class FakeBadParameters(PassParameters):
    how: Literal["copy", "garbage", "nan", "lossy", "slow"] = "copy"
    unchecked: bool = False


class FakeBadPass:
    """Claims to restructure `tests.zoo.dense`; `how` says what it does instead."""

    name: ClassVar[str] = NAME
    version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "optimizer"
    toolchain: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ("onnx",)
    parameters: ClassVar[type[PassParameters]] = FakeBadParameters
    evidence: ClassVar[str] = "structure"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = 0.1

    def run(self, source: Path, out_dir: Path, parameters: FakeBadParameters, calibration: Any, context: Any) -> Changed:
        target = out_dir / "model.onnx"
        if parameters.unchecked:
            checks.check = lambda *_: None  # type: ignore[assignment]
        if parameters.how == "copy":
            shutil.copy(source, target)
        elif parameters.how == "garbage":
            target.write_bytes(b"\x3a\xff\xff\xff\x7fgarbage")
        else:
            {"nan": _nan, "lossy": _lossy, "slow": _slow}[parameters.how](source, target)
        return Changed(parameters.how)


def _nan(source: Path, target: Path) -> None:
    """Every weight NaN."""
    import numpy as np
    import onnx

    model = onnx.load(source)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, np.nan), tensor.name))
    onnx.save(model, target)


def _lossy(source: Path, target: Path) -> None:
    """One small product instead of two large ones: far faster, and wrong."""
    import numpy as np
    import onnx

    model = onnx.load(source)
    graph = model.graph
    weights = np.random.default_rng(7).normal(size=(16, 10)).astype(np.float32)
    del graph.node[:], graph.initializer[:]
    graph.initializer.append(onnx.numpy_helper.from_array(weights, "short"))
    graph.node.append(onnx.helper.make_node("MatMul", ["x", "short"], ["y"], name="short"))
    onnx.save(model, target)


def _slow(source: Path, target: Path) -> None:
    """The same answer after a large product that depends on the input and counts for nothing."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(source)
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["quick" if name == "y" else name for name in node.output]
    square = np.random.default_rng(8).normal(size=(512, 512)).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(square, "square"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, dtype=np.float32), "zero"))
    graph.node.extend(
        [
            helper.make_node("ReduceMean", ["x"], ["scale"], name="scale", keepdims=0),
            helper.make_node("Mul", ["square", "scale"], ["scaled"], name="scaled"),
            helper.make_node("MatMul", ["scaled", "square"], ["product"], name="product"),
            helper.make_node("ReduceMean", ["product"], ["sum"], name="sum", keepdims=0),
            helper.make_node("Mul", ["sum", "zero"], ["nothing"], name="nothing"),
            helper.make_node("Add", ["quick", "nothing"], ["y"], name="late"),
        ]
    )
    onnx.save(model, target)


if __name__ == "__main__":
    PASSES[NAME] = "tests.e2e.bad_passes:FakeBadPass"  # type: ignore[index]
    from controller.cli import main

    main()
