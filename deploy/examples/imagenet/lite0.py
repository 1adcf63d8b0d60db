"""EfficientNet-Lite0 as an ONNX graph, batch normalisation folded into the convolutions.

x: float32[N, 3, 224, 224] = (RGB pixel - 127) / 128 -> logits: float32[N, 1000].
The network is that of Tan and Le, "EfficientNet", 2019, in the Lite form of the TensorFlow authors: no squeeze-and-excitation,
ReLU6, stem and head not scaled. Names of weights are those of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

SIDE = 224
CLASSES = 1000
EPSILON = 1e-3
OPSET = 17
IR_VERSION = 8  # what opset 17 came with: older runtimes load it

Weights = Mapping[str, NDArray[Any]]


class Stage(NamedTuple):
    """A row of blocks of the same kind; only the first one strides and changes the number of channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STEM, HEAD = 32, 1280
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def fold(kernel: NDArray[Any], norm: str, weights: Weights) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Kernel [out, in, h, w] and bias [out] of a convolution that does what it and the batch normalisation after it did."""
    scale = weights[f"{norm}.weight"].astype(np.float64) / np.sqrt(weights[f"{norm}.running_var"].astype(np.float64) + EPSILON)
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    return (kernel * scale[:, None, None, None]).astype(np.float32), bias.astype(np.float32)


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after an axis so that ceil(side / stride) positions result, the odd one after (TensorFlow's SAME)."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


class _Builder:
    """Collects nodes and initializers, and follows the side of the square feature maps."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers = [
            numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("relu6.low", 0), ("relu6.high", 6))
        ]
        self.side = SIDE

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Adds a node; its one output bears its name."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[np.float32]) -> str:
        """Adds an initializer."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def conv(self, x: str, name: str, norm: str, stride: int = 1) -> str:
        """Convolution with the batch normalisation `norm`; a kernel with one input channel in more than one out is a depthwise one."""
        kernel, bias = fold(self.weights[f"{name}.weight"], norm, self.weights)
        before, after = same_padding(self.side, kernel.shape[2], stride)
        self.side = -(-self.side // stride)
        inputs = [x, self.constant(f"{name}.weight", kernel), self.constant(f"{name}.bias", bias)]
        return self.node(
            "Conv",
            inputs,
            name,
            kernel_shape=list(kernel.shape[2:]),
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=kernel.shape[0] if kernel.shape[1] == 1 else 1,
        )

    def relu6(self, x: str) -> str:
        """Clips to [0, 6]."""
        return self.node("Clip", [x, "relu6.low", "relu6.high"], f"{x}.relu6")

    def block(self, x: str, name: str, stage: Stage, first: bool) -> str:
        """Inverted residual: widen (unless the expansion is 1), depthwise, narrow; the input is added where the shape is kept."""
        y = x
        if stage.expansion != 1:
            y = self.relu6(self.conv(y, f"{name}._expand_conv", f"{name}._bn0"))
        y = self.relu6(self.conv(y, f"{name}._depthwise_conv", f"{name}._bn1", stage.stride if first else 1))
        y = self.conv(y, f"{name}._project_conv", f"{name}._bn2")
        return y if first else self.node("Add", [y, x], f"{name}.add")


def build(weights: Weights) -> onnx.ModelProto:
    """The whole network from its checkpoint's arrays. Raises KeyError where a weight is missing, onnx's error where shapes differ."""
    builder = _Builder(weights)
    y = builder.relu6(builder.conv("x", "_conv_stem", "_bn0", stride=2))
    index = 0
    for stage in STAGES:
        for position in range(stage.blocks):
            y = builder.block(y, f"_blocks.{index}", stage, first=position == 0)
            index += 1
    y = builder.relu6(builder.conv(y, "_conv_head", "_bn1"))
    y = builder.node("Flatten", [builder.node("GlobalAveragePool", [y], "pool")], "features", axis=1)
    fc = [builder.constant(f"_fc.{part}", weights[f"_fc.{part}"]) for part in ("weight", "bias")]
    builder.node("Gemm", [y, *fc], "logits", transB=1)

    graph = helper.make_graph(
        builder.nodes,
        "efficientnet-lite0",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", CLASSES])],
        builder.initializers,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="edgefarm-example"
    )
    onnx.checker.check_model(model, full_check=True)
    return model
