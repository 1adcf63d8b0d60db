"""`recipes: auto`: what an expert would try on this model, best expectation first, since budgets cut the tail. Pure.

Sources of the order: ONNX Runtime's quantisation guide; Krishnamoorthi, arXiv:1806.08342 (per-channel weights for depthwise
convolutions); measurements on x86 with and without VNNI (unsigned activations fuse, dynamic convolutions are slow).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from edgefarm.model import Scalar
from optimizer.passes import load_pass, missing_tools
from optimizer.source import Signature

_PRODUCTS = ("MatMul", "Gemm", "Attention", "LSTM")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_ALSO_INTEGER = ("Add", "Mul", "Sigmoid", "Softmax", "Concat", "GlobalAveragePool", "AveragePool", "Resize", "LeakyRelu")
_FLOATS = ("float32", "float64")
_RATIOS = (0.5, 0.3, 0.7)  # of channels to take out: the one that pays most where it holds, then a safer one, then a bolder one
TRAINED, CONVERTED, KERAS = "prune_structured", "to_tflite", "tfmot"
_SEEN, _LEAST_EPOCHS, _MOST_EPOCHS = 60_000, 3, 30  # samples that a pruned network sees while it recovers

Parameters = Mapping[str, Scalar]


@dataclass(frozen=True)
class Draft:
    """A named sequence of (pass, parameters), not yet validated."""

    name: str
    steps: tuple[tuple[str, Parameters], ...]


@dataclass(frozen=True)
class _Facts:
    convolutions: int
    products: int
    grouped: bool
    others: bool
    quantised: bool
    half: bool
    normalised: bool
    lookups: bool

    @classmethod
    def of(cls, signature: Signature) -> _Facts:
        count = signature.op_types.get
        return cls(
            convolutions=sum(count(name, 0) for name in _CONVOLUTIONS),
            products=sum(count(name, 0) for name in _PRODUCTS),
            grouped=signature.grouped_convolutions > 0,
            others=any(count(name, 0) for name in _ALSO_INTEGER),
            quantised=any("Quantize" in name or "Integer" in name or name.startswith("QLinear") for name in signature.op_types)
            or (signature.format != "onnx" and signature.integers > 0),
            half=not any(signature.weight_dtypes.get(name) for name in _FLOATS),
            normalised=count("LayerNormalization", 0) > 0,
            lookups=count("Gather", 0) > 0,
        )

    @property
    def mostly_products(self) -> bool:
        """Whether the model is a transformer or the like, where what helps differs from what helps convolutions."""
        return self.products > 2 * self.convolutions


def weighted_layers(signature: Signature) -> int:
    """How many operators of a model may hold weights."""
    facts = _Facts.of(signature)
    return facts.convolutions + facts.products


def drafts(
    signature: Signature,
    has_calibration: bool,
    train: int = 0,
    *,
    alternative: bool = False,
    others: Collection[str] = (),
    original: str = "",
) -> list[Draft]:
    """The sequence of drafts for a model; without calibration samples those that need none, without samples to train with none that trains.

    Those that train come last: they take minutes where others take seconds. `train`: number of samples to train with.

    `alternative`: the model is the user's own conversion of the source, so it is not converted once more. `others`: formats of such files
    where this is the source itself, to which it is not converted then. `original`: digest of the Keras file that it was exported from.
    """
    by_format = {"onnx": _onnx, "tflite": _tflite}
    facts = _Facts.of(signature)
    found = list(by_format[signature.format](signature, has_calibration)) if signature.format in by_format else []
    if not alternative and signature.format != "openvino":
        found += _openvino(facts, has_calibration)
    lite = signature.format == "onnx" and not missing_tools(load_pass(CONVERTED))
    if lite and "tflite" not in others:
        found += _as_tflite(facts, has_calibration)
    if train and signature.format == "onnx" and not missing_tools(load_pass(TRAINED)):
        found += _pruned(facts, has_calibration, train, lite=lite)
    if train and original and signature.format == "tflite" and not missing_tools(load_pass(KERAS)):
        found.append(Draft("tflite-int8-aware", ((KERAS, {"original": original}),)))
    return found


def _as_tflite(facts: _Facts, has_calibration: bool) -> Iterator[Draft]:
    """The source as TFLite, and what one would try on a TFLite file."""
    if facts.quantised or facts.half:
        return
    first: tuple[tuple[str, Parameters], ...] = (("graph", {}), (CONVERTED, {}))
    yield Draft("tflite", first)
    for draft in _tflite_integers(has_calibration):
        yield Draft(draft.name, (*first, *draft.steps))


def _pruned(facts: _Facts, has_calibration: bool, train: int, *, lite: bool) -> Iterator[Draft]:
    """Smaller networks, trained towards the source, then as integers like it. Few samples are seen more often."""
    epochs = float(min(max(math.ceil(_SEEN / train), _LEAST_EPOCHS), _MOST_EPOCHS))
    if facts.quantised or facts.half or not facts.convolutions + facts.products:
        return
    for ratio in _RATIOS:
        steps: tuple[tuple[str, Parameters], ...] = (("graph", {}), (TRAINED, {"ratio": ratio, "epochs": epochs}))
        if has_calibration:
            yield Draft(f"pruned{ratio * 100:.0f}-int8", (*steps, ("quantize_static", {"per_channel": True})))
            yield Draft(f"pruned{ratio * 100:.0f}-int7", (*steps, ("quantize_static", {"per_channel": True, "reduce_range": True})))
        yield Draft(f"pruned{ratio * 100:.0f}", steps)
        if lite and has_calibration:
            yield Draft(f"pruned{ratio * 100:.0f}-tflite-int8", (*steps, (CONVERTED, {}), ("quantize_tflite", {})))


def _onnx(signature: Signature, has_calibration: bool) -> Iterator[Draft]:
    facts = _Facts.of(signature)
    families = [_static(facts) if has_calibration else iter(()), _dynamic(facts), _plain(facts)]
    if facts.mostly_products:  # they quantise well on the fly, and keep more accuracy
        families = [_dynamic(facts), families[0], _weights(facts), _plain(facts)]
    for family in families:
        yield from family


def _tflite(signature: Signature, has_calibration: bool) -> Iterator[Draft]:
    """Static integers are the fastest by far where their accuracy holds; dynamic ones are slow on depthwise convolutions."""
    if not signature.integers:
        yield from _tflite_integers(has_calibration)


def _tflite_integers(has_calibration: bool) -> Iterator[Draft]:
    if has_calibration:
        yield Draft("tflite-int8-static", (("quantize_tflite", {}),))
        yield Draft("tflite-int8-average", (("quantize_tflite", {"calibration": "average"}),))
        yield Draft("tflite-int8-static-octav", (("quantize_tflite", {"algorithm": "octav"}),))
    yield Draft("tflite-int8-dynamic", (("quantize_tflite", {"mode": "dynamic"}),))
    yield Draft("tflite-int8-weights", (("quantize_tflite", {"mode": "weight_only"}),))


def _openvino(facts: _Facts, has_calibration: bool) -> Iterator[Draft]:
    yield Draft("openvino", (("to_openvino", {}),))
    if has_calibration and not facts.half and not facts.quantised and not missing_tools(load_pass("quantize_openvino")):
        transformer: Parameters = {"transformer": True} if facts.mostly_products else {}
        yield Draft("openvino-int8", (("to_openvino", {}), ("quantize_openvino", transformer)))
        yield Draft("openvino-int8-mixed", (("to_openvino", {}), ("quantize_openvino", {"preset": "mixed", **transformer})))
    if not facts.half and not facts.quantised:
        yield Draft("openvino-fp16", (("to_openvino", {"compress_to_fp16": True}),))


def _after_graph(name: str, pass_name: str, **parameters: Scalar) -> Draft:
    return Draft(name, (("graph", {}), (pass_name, parameters)))


def _static(facts: _Facts) -> Iterator[Draft]:
    if facts.quantised or not facts.convolutions + facts.products:
        return
    plain = _after_graph("int8-static", "quantize_static")
    channels = _after_graph("int8-static-per-channel", "quantize_static", per_channel=True)
    yield from (channels, plain) if facts.grouped else (plain, channels)
    yield _after_graph("int8-static-percentile", "quantize_static", per_channel=True, calibration="percentile")
    yield _after_graph("int8-static-entropy", "quantize_static", per_channel=True, calibration="entropy")
    if facts.others:
        core = ",".join(n for n, found in (("Conv", facts.convolutions), ("Gemm,MatMul", facts.products)) if found)
        yield _after_graph("int8-static-core", "quantize_static", per_channel=True, op_types=core)
    if facts.convolutions and facts.products:
        yield _after_graph("int8-static-conv", "quantize_static", per_channel=True, op_types="Conv")
        yield _after_graph("int8-static-matmul", "quantize_static", op_types="Gemm,MatMul")
    if facts.normalised and facts.products:  # where a few channels of the activations are far larger than the others
        products: Parameters = {"per_channel": True, "op_types": "Gemm,MatMul"}
        yield Draft("int8-static-smooth", (("graph", {}), ("smooth", {}), ("quantize_static", products)))
    yield _after_graph("int8-static-signed", "quantize_static", per_channel=True, activation="s8", activation_symmetric=True)
    yield _after_graph("int8-static-7bit", "quantize_static", per_channel=True, reduce_range=True)
    if facts.grouped:  # their few weights per channel shift the means most: there it halves the drift, elsewhere it may raise it
        yield _after_graph("int8-static-bias", "quantize_static", per_channel=True, bias_correction=True)
        yield _after_graph("int8-static-7bit-bias", "quantize_static", per_channel=True, reduce_range=True, bias_correction=True)


def _dynamic(facts: _Facts) -> Iterator[Draft]:
    if facts.quantised or not facts.convolutions + facts.products:
        return
    if facts.products and facts.convolutions:
        yield _after_graph("int8-dynamic-matmul", "quantize_dynamic", op_types="Gemm,MatMul")
    yield _after_graph("int8-dynamic", "quantize_dynamic")
    if facts.products > facts.convolutions:
        yield _after_graph("int8-dynamic-per-channel", "quantize_dynamic", per_channel=True, weight="s8")
        # signed weights are faster on x86, and overflow 16-bit sums there unless they keep to seven bits
        yield _after_graph("int8-dynamic-7bit", "quantize_dynamic", per_channel=True, weight="s8", reduce_range=True)


def _weights(facts: _Facts) -> Iterator[Draft]:
    """Integers in the file and in memory, floats in the products: small, and fast where reading weights takes longer than multiplying."""
    if facts.quantised or facts.half:
        return
    yield _after_graph("int8-weights", "quantize_weights", bits=8)
    yield _after_graph("int4-weights", "quantize_weights", bits=4)
    if facts.lookups:
        yield _after_graph("int4-weights-lookups", "quantize_weights", bits=4, embeddings=True)


def _plain(facts: _Facts) -> Iterator[Draft]:
    yield Draft("graph", (("graph", {}),))
    if not facts.half:
        yield _after_graph("fp16", "convert_float16")
