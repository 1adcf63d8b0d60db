"""The signature of an OpenVINO model: a .xml with the graph and a .bin with the weights beside it.

A document type is refused: without one there are no entities, so nothing can be expanded or fetched. The layout is that of IR
versions 10 and 11, https://docs.openvino.ai/2025/documentation/openvino-ir-format.html
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from edgefarm.errors import UserError
from optimizer.signature import Malformed, Signature, TensorSpec

_OLDEST_VERSION = 10
_DTYPES = {"f": "float", "fp": "float", "i": "int", "u": "uint", "bf": "bfloat"}  # f32, FP32, i64 …


def read(path: Path) -> Signature:
    """Reads the graph; weights stay on the disk. Raises Malformed, OSError, and UserError for a .bin that is missing or cut short."""
    net = _parse(path)
    layers = {layer.get("id", ""): layer for layer in net.iterfind("layers/layer")}
    sources = {e.get("to-layer"): (e.get("from-layer", ""), e.get("from-port")) for e in net.iterfind("edges/edge")}
    inputs = tuple(_input(layer) for layer in layers.values() if layer.get("type") == "Parameter")
    results = {identity: layer for identity, layer in layers.items() if layer.get("type") == "Result"}
    if not results:
        raise Malformed("its graph has no outputs")
    outputs = tuple(_output(layer, layers, *sources.get(identity, ("", ""))) for identity, layer in results.items())
    every = list(net.iter("layer"))  # those in the bodies of loops and branches too
    constants = [data for layer in every if layer.get("type") == "Const" and (data := layer.find("data")) is not None]
    operators = Counter(layer.get("type", "") for layer in every if layer.get("type") not in ("Const", "Parameter", "Result"))
    end = max((_whole(data, "offset") + _whole(data, "size") for data in constants), default=0)
    return Signature(
        inputs=inputs,
        outputs=outputs,
        opset=_whole(net, "version"),
        format="openvino",
        files=(path.name, *_weights(path, end)),
        op_types=dict(operators),
        weight_dtypes=dict(Counter(_dtype(data.get("element_type", "")) for data in constants)),
        grouped_convolutions=operators["GroupConvolution"],
    )


class _Builder(ElementTree.TreeBuilder):
    """Builds the tree of a document that declares nothing."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise Malformed(f"it declares a document type ({name}), which no model does")


def _parse(path: Path) -> Element:
    try:
        net = ElementTree.parse(path, ElementTree.XMLParser(target=_Builder())).getroot()
    except ElementTree.ParseError as error:
        raise Malformed(str(error)) from error
    if net is None or net.tag != "net":
        raise Malformed(f"its root is <{'' if net is None else net.tag}>, not <net>")
    if (version := _whole(net, "version")) < _OLDEST_VERSION:
        raise Malformed(f"IR version {version}; versions from {_OLDEST_VERSION} on are read: convert the model again")
    return net


def _weights(path: Path, end: int) -> tuple[str, ...]:
    """The .bin, once it is sure to hold `end` bytes; nothing where there is none and none is needed."""
    file = path.with_suffix(".bin")
    if not file.is_file():
        if end:
            raise UserError(f"{path}: its weights are missing: there is no file {file.name} beside it; copy it there")
        return ()
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise UserError(f"{file}: leads out of the model's folder by a link; copy the weights beside the model")
    if (size := file.stat().st_size) < end:
        raise UserError(f"{file}: bytes up to {end} are asked for by {path.name}, the file has {size}: it is cut short; copy it again")
    return (file.name,)


def _input(layer: Element) -> TensorSpec:
    data, port = layer.find("data"), layer.find("output/port")
    if data is None or port is None:
        raise Malformed(f"input {layer.get('name')!r} has no type or no port")
    shape, ranked = _shape(port)
    return TensorSpec(_called(layer, port.get("names")), _dtype(data.get("element_type", "")), shape, ranked)


def _output(layer: Element, layers: dict[str, Element], maker: str, number: str | None) -> TensorSpec:
    port = layer.find("input/port")
    if maker not in layers or port is None:
        raise Malformed(f"output {layer.get('name')!r} is not connected")
    made = next((p for p in layers[maker].iterfind("output/port") if p.get("id") == number), port)
    shape, ranked = _shape(port)
    return TensorSpec(_called(layer, layer.get("output_names") or made.get("names")), _dtype(port.get("precision", "")), shape, ranked)


def _called(layer: Element, names: str | None) -> str:
    """Of a tensor's names (joined by commas, `\\,` inside of one) that of its layer, else the first in the alphabet; else the layer's."""
    known, own = [n.replace("\\,", ",") for n in re.split(r"(?<!\\),", names or "") if n], layer.get("name", "")
    return own if own in known or not known else min(known)


def _shape(port: Element) -> tuple[tuple[int | None, ...], bool]:
    """Sizes, and whether the rank is known: an unknown one is written as a single dimension ..."""
    texts = [dim.text or "" for dim in port.iterfind("dim")]
    if "..." in texts:
        return (), False
    sizes = [int(t) if re.fullmatch(r"\d+", t) else None for t in texts]
    return tuple(size if size is None or size > 0 else None for size in sizes), True


def _dtype(text: str) -> str:
    """numpy's name of an element type; types without one keep theirs."""
    if text.lower() in ("boolean", "bool"):
        return "bool"
    found = re.fullmatch(r"([a-z]+)(\d+)", text.lower())
    return _DTYPES[found[1]] + found[2] if found and found[1] in _DTYPES else {"string": "str"}.get(text.lower(), text or "untyped")


def _whole(element: Element, name: str) -> int:
    text = element.get(name, "0")
    if not re.fullmatch(r"\d{1,18}", text):
        raise Malformed(f"<{element.tag}> has {name}={text!r}, which is no whole number")
    return int(text)
