"""Every operator of the training table against ONNX Runtime, and what is not in the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgefarm.model import FailureKind
from optimizer.passes import PassFailure
from optimizer.training.network import Network
from optimizer.training.operators import OPERATORS

_R = np.random.default_rng(0)


def f(*shape: int) -> Any:
    return _R.normal(size=shape).astype(np.float32)


def i(*values: int) -> Any:
    return np.array(values, np.int64)


X = f(2, 4, 6, 6)
Case = tuple[str, dict[str, Any], list[Any], int]
UNARY = "Abs Ceil Cos Exp Floor Identity Neg Reciprocal Relu Round Sigmoid Sin Softplus Tanh Erf Mish HardSwish Elu LeakyRelu HardSigmoid"
NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
CASES: list[Case] = [
    *((name, {}, [X], 18) for name in UNARY.split()),
    ("Sqrt", {}, [np.abs(X)], 18), ("Log", {}, [np.abs(X) + 1], 18), ("Dropout", {}, [X], 13),
    ("LeakyRelu", {"alpha": 0.3}, [X], 16), ("Elu", {"alpha": 0.5}, [X], 18), ("HardSigmoid", {"alpha": 0.1, "beta": 0.4}, [X], 18),
    ("Gelu", {}, [X], 20), ("Gelu", {"approximate": "tanh"}, [X], 20),
    *((name, {}, [X, f(1, 4, 1, 1)], 18) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Sum")),
    ("Div", {}, [i(-7, 7, 8), i(2, 2, -3)], 18), ("Pow", {}, [np.abs(X), np.array(1.5, np.float32)], 18),
    *((name, {}, [X, f(4, 6, 6)], 18) for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    ("And", {}, [X > 0, X > 1], 18), ("Or", {}, [X > 0, X > 1], 18), ("Not", {}, [X > 0], 18), ("Where", {}, [X > 0, X, f(1)], 18),
    ("Clip", {"min": -0.5, "max": 0.5}, [X], 6), ("Clip", {}, [X, np.float32(0.1)], 13), ("Clip", {}, [X], 13),
    ("Clip", {}, [X, None, np.float32(0.1)], 13),
    ("Softmax", {}, [f(2, 3, 4)], 11), ("Softmax", {"axis": 2}, [f(2, 3, 4)], 11), ("Softmax", {"axis": 1}, [f(2, 3, 4)], 13),
    ("LogSoftmax", {}, [f(2, 3, 4)], 13),
    *((f"Reduce{name}", {"axes": [2, 3]}, [X], 11) for name in ("Mean", "Sum", "Max", "Min", "Prod", "L2")),
    ("ReduceMean", {"keepdims": 0}, [X, i(1, -1)], 18), ("ReduceMean", {}, [X], 18), ("ReduceSum", {"noop_with_empty_axes": 1}, [X], 13),
    ("ReduceProd", {"axes": [1], "keepdims": 0}, [X], 11),
    ("ArgMax", {"axis": 1, "keepdims": 0}, [X], 13), ("ArgMin", {"axis": -1}, [X], 13),
    ("GlobalAveragePool", {}, [X], 18), ("GlobalMaxPool", {}, [X], 18),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, [X], 12),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 1, 1, 0]}, [X], 12),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "dilations": [1, 1]}, [X], 12),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, [X], 12),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, [X], 12),
    ("AveragePool", {"kernel_shape": [2, 2], "count_include_pad": 1, "pads": [0, 1, 1, 0]}, [X], 12),
    ("AveragePool", {"kernel_shape": [3, 3], "auto_pad": "VALID"}, [X], 12),
    ("Reshape", {}, [X, i(0, -1, 6)], 14), ("Reshape", {"allowzero": 1}, [X, i(2, -1)], 14),
    ("Flatten", {}, [X], 13), ("Flatten", {"axis": 2}, [X], 13), ("Flatten", {"axis": -1}, [X], 13), ("Flatten", {"axis": 0}, [X], 13),
    ("Transpose", {"perm": [0, 2, 3, 1]}, [X], 13), ("Transpose", {}, [X], 13),
    ("Squeeze", {"axes": [0]}, [f(1, 3, 1)], 11), ("Squeeze", {}, [f(1, 3, 1), i(-1)], 13), ("Squeeze", {}, [f(1, 3, 1)], 13),
    ("Unsqueeze", {"axes": [0, 3]}, [f(2, 3)], 11), ("Unsqueeze", {}, [f(2, 3), i(-1, 0)], 13),
    ("Concat", {"axis": 1}, [X, f(2, 1, 6, 6)], 13), ("Expand", {}, [f(3, 1), i(2, 3, 4)], 13), ("Tile", {}, [f(2, 3), i(2, 2)], 13),
    ("Split", {"axis": 1, "split": [1, 3]}, [X], 11),
    ("Split", {"axis": 1}, [X, i(3, 1)], 13),
    ("Split", {"axis": 1, "num_outputs": 2}, [X], 18),
    ("Slice", {"starts": [1], "ends": [100], "axes": [2]}, [X], 9), ("Slice", {}, [X, i(0, -1), i(3, -7), i(1, 2), i(1, -2)], 13),
    ("Slice", {}, [X, i(1), i(2)], 13),
    ("Gather", {"axis": 1}, [X, i(-1, 0)], 13),
    ("Gather", {}, [f(5, 3), np.array([[0, 4], [1, -2]])], 13),
    ("Pad", {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 3.0}, [X], 2), ("Pad", {}, [X, i(0, 1, 1, 0, 0, 0, 0, 2)], 13),
    ("Pad", {"mode": "reflect"}, [X, i(0, 0, 1, 2, 0, 0, 2, 1)], 13), ("Pad", {"mode": "edge"}, [X, i(0, 0, 1, 2, 0, 0, 2, 1)], 13),
    ("Shape", {}, [X], 13), ("Shape", {"start": 1, "end": 3}, [X], 15), ("Size", {}, [X], 13),
    ("ConstantOfShape", {}, [i(2, 3)], 13),
    ("ConstantOfShape", {"value": numpy_helper.from_array(np.array([7], np.int64))}, [i(2, 3)], 13),
    ("Range", {}, [np.int64(1), np.int64(9), np.int64(3)], 13), ("Cast", {"to": TensorProto.INT64}, [X], 13),
    ("Einsum", {"equation": "bij,bjk->bik"}, [f(2, 3, 4), f(2, 4, 5)], 13),
    ("DepthToSpace", {"blocksize": 2}, [X], 13), ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, [X], 13),
    ("SpaceToDepth", {"blocksize": 2}, [X], 13),
    ("Resize", NEAREST, [X, None, np.float32([1, 1, 2, 3])], 13),
    ("Resize", {"mode": "linear"}, [X, None, None, i(2, 4, 9, 4)], 13),
    ("MatMul", {}, [f(2, 3, 4), f(2, 4, 5)], 13),
    ("Gemm", {"alpha": 0.5, "beta": 2.0, "transA": 1, "transB": 1}, [f(4, 3), f(5, 4), f(5)], 13),
    ("LayerNormalization", {"axis": -1, "epsilon": 1e-3}, [f(2, 3, 8), f(8), f(8)], 17),
    ("LayerNormalization", {"axis": 1}, [f(2, 3, 8), f(3, 8)], 17),
    ("InstanceNormalization", {"epsilon": 1e-3}, [X, f(4), f(4)], 13),
    ("Constant", {"value_ints": [1, 2]}, [], 13), ("Constant", {"value_float": 1.5}, [], 13),
    ("Constant", {"value": numpy_helper.from_array(f(2, 2))}, [], 13),
]  # fmt: skip
LAYERS: list[Case] = [
    ("Conv", {"pads": [1, 1, 1, 1], "strides": [2, 2]}, [X, f(8, 4, 3, 3), f(8)], 13),
    ("Conv", {"group": 4, "pads": [0, 1, 1, 0]}, [X, f(8, 1, 3, 3)], 13),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [X, f(8, 4, 3, 3)], 13),
    ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, [X, f(8, 4, 2, 2)], 13),
    ("Conv", {"pads": [1, 1]}, [f(2, 3, 9), f(4, 3, 3)], 13),
    ("ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, [X, f(4, 8, 3, 3), f(8)], 13),
    ("ConvTranspose", {"group": 2}, [X, f(4, 3, 3, 3)], 13),
    ("BatchNormalization", {"epsilon": 1e-3}, [X, f(4), f(4), f(4), np.abs(f(4)) + 1], 15),
    ("MatMul", {}, [f(2, 3, 4), f(4, 5)], 13),
    ("Gemm", {}, [f(3, 4), f(4, 5), f(5)], 13), ("Gemm", {"transB": 1}, [f(3, 4), f(5, 4), f(1, 5)], 13),
]  # fmt: skip


def model(case: Case, *, constants: bool = False) -> tuple[Any, list[Any]]:
    """A graph of one node, and what it is fed. `constants`: all inputs but the first are initialisers."""
    op_type, attributes, arrays, opset = case
    names = ["" if a is None else f"x{k}" for k, a in enumerate(arrays)]
    given = [(n, np.asarray(a)) for n, a in zip(names, arrays) if a is not None]
    outputs = [f"y{k}" for k in range(2 if op_type == "Split" else 1)]
    node = helper.make_node(op_type, names, outputs, **attributes)
    fed = given[:1] if constants else given
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in fed],
        [helper.make_tensor_value_info(o, TensorProto.UNDEFINED, None) for o in outputs],
        [numpy_helper.from_array(a, n) for n, a in given[len(fed) :]],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made), [a for _, a in fed]


def ort(made: Any, fed: list[Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {i.name: a for i, a in zip(session.get_inputs(), fed)}))


def in_torch(made: Any, fed: list[Any]) -> list[Any]:
    network = Network(made).eval()
    with torch.no_grad():
        return [value.numpy() for value in network(*(torch.from_numpy(np.array(a)) for a in fed))]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{c[3]}")
def test_an_operator_computes_what_onnx_runtime_does(case: Case) -> None:
    made, fed = model(case)
    for got, wanted in zip(in_torch(made, fed), ort(made, fed)):
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", LAYERS, ids=lambda c: c[0])
def test_a_layer_computes_the_same_and_gives_its_weights_back(case: Case) -> None:
    made, fed = model(case, constants=True)
    wanted = ort(made, fed)[0]
    network = Network(made).eval()
    assert len(list(network.layer_calls())) == 1
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(fed[0]))[0].numpy(), wanted, rtol=1e-4, atol=1e-5)
    assert network.to_model().SerializeToString(deterministic=True) == made.SerializeToString(deterministic=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.0)
    doubled = ort(network.to_model(), fed)[0]
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(fed[0]))[0].numpy(), doubled, rtol=1e-4, atol=1e-4)
    assert np.abs(doubled - wanted).max() > 0.1


def test_every_operator_is_tried() -> None:
    assert {case[0] for case in CASES} >= set(OPERATORS)


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (("LSTM", {"hidden_size": 2}, [f(3, 1, 4), f(1, 8, 4), f(1, 8, 2)], 14), "operator LSTM"),
        (("Conv", {}, [X, f(8, 4, 3, 3)], 13), "operator Conv with weights that are computed, or shared"),
        (("ConvTranspose", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [X, f(4, 8, 3, 3)], 13), "automatic padding"),
    ],
)
def test_what_training_does_not_know_is_named(case: Case, told: str) -> None:
    made, _ = model(case, constants="automatic" in told)
    with pytest.raises(PassFailure, match=told) as caught:
        Network(made)
    assert caught.value.kind is FailureKind.UNSUPPORTED_OP
