"""ONNX operators without weights of their own, as functions of torch tensors. Semantics: the ONNX operator specification.

Each takes the node's attributes and its inputs (None for one that is left out) and returns a tensor, or a tuple of several. An operator
that is not in the table is told by `missing`; nothing is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from optimizer.training.pools import Unsupported, ints, padded, pool

Attributes = Mapping[str, Any]
Values = Sequence[Any]
Operator = Callable[[Attributes, Values], Any]

_DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16,
    11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def _unary(function: Callable[[Any], Any]) -> Operator:
    return lambda a, v: function(v[0])


def _binary(function: Callable[[Any, Any], Any]) -> Operator:
    return lambda a, v: function(v[0], v[1])


def _folded(function: Callable[[Any, Any], Any]) -> Operator:
    def over(a: Attributes, v: Values) -> Any:
        result = v[0]
        for value in v[1:]:
            result = function(result, value)
        return result

    return over


def _optional(v: Values, index: int) -> Any:
    return v[index] if len(v) > index else None


def _axes(a: Attributes, v: Values, index: int) -> list[int] | None:
    """Axes are an attribute in older operator sets, an input in newer ones."""
    given = _optional(v, index)
    return ints(given) if given is not None else (ints(a["axes"]) if "axes" in a else None)


def _divide(x: Any, y: Any) -> Any:
    return torch.div(x, y) if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _clip(a: Attributes, v: Values) -> Any:
    low, high = _optional(v, 1), _optional(v, 2)
    low = a.get("min") if low is None else low
    high = a.get("max") if high is None else high
    if low is None and high is None:
        return v[0]
    return torch.clamp(v[0], _number(low), _number(high))


def _number(x: Any) -> Any:
    """A bound as a number: clamp has the cheaper gradient then."""
    return x.item() if torch.is_tensor(x) else x


def _softmax(function: Callable[..., Any]) -> Operator:
    def over(a: Attributes, v: Values) -> Any:
        x = v[0]
        if a["opset"] >= 13:
            return function(x, a.get("axis", -1))
        axis = a.get("axis", 1) % max(x.dim(), 1)  # older sets flatten to two axes first
        return function(x.flatten(axis), -1).reshape(x.shape) if axis < x.dim() - 1 else function(x, -1)

    return over


def _reduce(function: Callable[[Any, list[int], bool], Any]) -> Operator:
    def over(a: Attributes, v: Values) -> Any:
        axes = _axes(a, v, 1)
        if axes is None and a.get("noop_with_empty_axes", 0):
            return v[0]
        return function(v[0], axes or list(range(v[0].dim())), bool(a.get("keepdims", 1)))

    return over


def _product(x: Any, axes: list[int], keep: bool) -> Any:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _arg(function: Callable[..., Any]) -> Operator:
    def over(a: Attributes, v: Values) -> Any:
        if a.get("select_last_index", 0):
            raise Unsupported("select_last_index")
        return function(v[0], dim=a.get("axis", 0), keepdim=bool(a.get("keepdims", 1)))

    return over


def _reshape(a: Attributes, v: Values) -> Any:
    x, shape = v[0], ints(v[1])
    if not a.get("allowzero", 0):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


def _flatten(a: Attributes, v: Values) -> Any:
    axis = a.get("axis", 1)
    axis = axis + v[0].dim() if axis < 0 else axis
    return v[0].flatten(axis) if axis == 1 and v[0].dim() > 1 else v[0].reshape(math.prod(v[0].shape[:axis]), -1)


def _transpose(a: Attributes, v: Values) -> Any:
    return v[0].permute(ints(a.get("perm", list(range(v[0].dim()))[::-1])))


def _squeeze(a: Attributes, v: Values) -> Any:
    axes = _axes(a, v, 1)
    return v[0].squeeze() if axes is None else v[0].squeeze(tuple(axes))


def _unsqueeze(a: Attributes, v: Values) -> Any:
    axes = _axes(a, v, 1) or []
    x, rank = v[0], v[0].dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _split(a: Attributes, v: Values) -> Any:
    axis, x = a.get("axis", 0), v[0]
    given = _optional(v, 1)
    sizes = ints(given) if given is not None else ints(a["split"]) if "split" in a else None
    if sizes is None:
        chunk = math.ceil(x.shape[axis] / a["outputs"])
        sizes = [min(chunk, x.shape[axis] - i * chunk) for i in range(a["outputs"])]
    return tuple(torch.split(x, sizes, axis))


def _slice(a: Attributes, v: Values) -> Any:
    x = v[0]
    starts, ends = (ints(v[i]) if len(v) > i else ints(a[name]) for i, name in ((1, "starts"), (2, "ends")))
    axes = _axes(a, v, 3) or list(range(len(starts)))
    given = _optional(v, 4)
    for start, end, axis, step in zip(starts, ends, axes, ints(given) if given is not None else [1] * len(starts)):
        size = x.shape[axis]
        chosen = range(size)[slice(start, None if step < 0 and end < -size else end, step)]
        if step == 1:
            x = x.narrow(axis, chosen.start, len(chosen)) if len(chosen) < size else x
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64))
    return x


def _gather(a: Attributes, v: Values) -> Any:
    x, index = v
    axis = a.get("axis", 0) % x.dim()
    index = torch.where(index < 0, index + x.shape[axis], index)
    return x.index_select(axis, index.reshape(-1).long()).reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _pad(a: Attributes, v: Values) -> Any:
    x, mode = v[0], a.get("mode", "constant")
    pads = ints(v[1]) if len(v) > 1 else ints(a["pads"])
    axes = _axes({}, v, 3) or list(range(x.dim()))
    sides = [(0, 0)] * x.dim()
    for i, axis in enumerate(axes):
        sides[axis] = (pads[i], pads[i + len(axes)])
    if mode == "constant":
        value = _optional(v, 2)
        return padded(x, sides, float(value) if value is not None else a.get("value", 0.0))
    if any(side != (0, 0) for side in sides[:2]):
        raise Unsupported(f"padding of batch or channels with {mode}")
    flat = [side for pair in reversed(sides[2:]) for side in pair]
    return functional.pad(x, flat, mode="replicate" if mode == "edge" else mode)


def _resize(a: Attributes, v: Values) -> Any:
    x, mode = v[0], a.get("mode", "nearest")
    transform = a.get("coordinate_transformation_mode", "half_pixel")
    sizes = _optional(v, 3)
    wanted = ints(sizes)[2:] if sizes is not None and sizes.numel() else [
        math.floor(n * s) for n, s in zip(x.shape[2:], (v[2] if len(v) > 2 else v[1]).flatten().tolist()[2:])]  # fmt: skip
    if mode == "nearest" and transform in ("asymmetric", "half_pixel") and a.get("nearest_mode", "round_prefer_floor") != "ceil":
        exact = [w % n == 0 for w, n in zip(wanted, x.shape[2:])]
        if all(exact):
            return functional.interpolate(x, wanted, mode="nearest")
    if mode == "linear" and transform in ("half_pixel", "pytorch_half_pixel", "align_corners") and x.dim() == 4:
        return functional.interpolate(x, wanted, mode="bilinear", align_corners=transform == "align_corners")
    raise Unsupported(f"Resize with mode {mode}, {transform}")


def _depth_to_space(a: Attributes, v: Values) -> Any:
    n, c, h, w = v[0].shape
    b = a["blocksize"]
    if a.get("mode", "DCR") == "DCR":
        return v[0].reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)
    return v[0].reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(a: Attributes, v: Values) -> Any:
    n, c, h, w = v[0].shape
    b = a["blocksize"]
    return v[0].reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


def _constant(a: Attributes, v: Values) -> Any:
    name = next((n for n in ("value", "value_float", "value_floats", "value_int", "value_ints") if n in a), None)
    if name is None:
        raise Unsupported("a Constant of text or of a sparse tensor")
    return a[name] if name == "value" else torch.tensor(a[name], dtype=torch.float32 if "float" in name else torch.int64)


def _constant_of_shape(a: Attributes, v: Values) -> Any:
    value = a.get("value")
    return torch.full(ints(v[0]), 0.0) if value is None else value.reshape(-1)[0].expand(ints(v[0])).clone()


def _layer_norm(a: Attributes, v: Values) -> Any:
    axis = a.get("axis", -1) % v[0].dim()
    shape = list(v[0].shape[axis:])
    weight, bias = (None if x is None else x.expand(shape) for x in (v[1], _optional(v, 2)))
    return functional.layer_norm(v[0], shape, weight, bias, a.get("epsilon", 1e-5))


def _instance_norm(a: Attributes, v: Values) -> Any:
    return functional.instance_norm(v[0], weight=v[1], bias=v[2], eps=a.get("epsilon", 1e-5))


def _gemm(a: Attributes, v: Values) -> Any:
    x = v[0].transpose(0, 1) if a.get("transA", 0) else v[0]
    y = v[1].transpose(0, 1) if a.get("transB", 0) else v[1]
    result = a.get("alpha", 1.0) * (x @ y)
    third = _optional(v, 2)
    return result if third is None else result + a.get("beta", 1.0) * third


def _prelu(a: Attributes, v: Values) -> Any:
    return torch.where(v[0] < 0, v[0] * v[1], v[0])


def _cast(a: Attributes, v: Values) -> Any:
    if a["to"] not in _DTYPES:
        raise Unsupported(f"a cast to type {a['to']}")
    return v[0].to(_DTYPES[a["to"]])


def _gelu(a: Attributes, v: Values) -> Any:
    return functional.gelu(v[0], approximate=a.get("approximate", "none"))


def _hard_sigmoid(a: Attributes, v: Values) -> Any:
    return torch.clamp(v[0] * a.get("alpha", 0.2) + a.get("beta", 0.5), 0.0, 1.0)


def _expand(a: Attributes, v: Values) -> Any:
    return v[0] * torch.ones(ints(v[1]), dtype=v[0].dtype)


OPERATORS: Mapping[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "AveragePool": pool(average=True),
    "Cast": _cast,
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Concat": lambda a, v: torch.cat(list(v), a["axis"]),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Cos": _unary(torch.cos),
    "DepthToSpace": _depth_to_space,
    "Div": _binary(_divide),
    "Dropout": _unary(lambda x: x),
    "Einsum": lambda a, v: torch.einsum(a["equation"], *v),
    "Elu": lambda a, v: functional.elu(v[0], a.get("alpha", 1.0)),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _unary(torch.floor),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _unary(lambda x: x.mean(list(range(2, x.dim())), keepdim=True)),
    "GlobalMaxPool": _unary(lambda x: x.amax(list(range(2, x.dim())), keepdim=True)),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(functional.hardswish),
    "Identity": _unary(lambda x: x),
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda a, v: functional.leaky_relu(v[0], a.get("alpha", 0.01)),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": _binary(torch.matmul),
    "Max": _folded(torch.maximum),
    "MaxPool": pool(average=False),
    "Min": _folded(torch.minimum),
    "Mish": _unary(functional.mish),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _binary(lambda x, y: torch.pow(x, y.item() if y.numel() == 1 else y)),
    "Range": lambda a, v: torch.arange(v[0].item(), v[1].item(), v[2].item(), dtype=v[0].dtype),
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceL2": _reduce(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "Relu": _unary(functional.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _unary(torch.round),
    "Shape": lambda a, v: torch.tensor(list(v[0].shape)[slice(a.get("start", 0), a.get("end"))], dtype=torch.int64),
    "Sigmoid": _unary(torch.sigmoid),
    "Sin": _unary(torch.sin),
    "Size": _unary(lambda x: torch.tensor(x.numel(), dtype=torch.int64)),
    "Slice": _slice,
    "Softmax": _softmax(torch.softmax),
    "Softplus": _unary(functional.softplus),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": _unary(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(torch.sub),
    "Sum": _folded(torch.add),
    "Tanh": _unary(torch.tanh),
    "Tile": lambda a, v: v[0].tile(ints(v[1])),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": lambda a, v: torch.where(v[0], v[1], v[2]),
}  # fmt: skip
