"""Trains the example's classifier on Fashion-MNIST and writes model.onnx, model.tflite and the three splits.

    apt-get install dataset-fashion-mnist
    pip install -r requirements.txt
    python train.py

`--tflite-only` trains nothing: it writes model.tflite from the model.onnx that is there. Seeded: one machine and one set of versions
give the same files again. The network is a small residual one (He et al., "Deep Residual Learning for Image Recognition", 2015):
x: float32[N, 1, 28, 28] = pixel / 255 -> logits: float32[N, 10].
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import onnx
import onnxruntime
import torch
from images import CLASSES, SIDE, Images, Labels, as_input, load, stratified
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
WIDTHS = (16, 32, 64, 128)
OPSET = 18  # the oldest that the exporter writes without converting back
VALIDATION, CALIBRATION, SELECTION, EVALUATION = 5000, 300, 700, 1500  # images; multiples of CLASSES


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        keeps_shape = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = (
            nn.Identity() if keeps_shape else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def network() -> nn.Sequential:
    """The classifier: a stem, one block at full size, then two blocks per halving; about 700 thousand parameters."""
    layers: list[nn.Module] = [
        nn.Conv2d(1, WIDTHS[0], 3, 1, 1, bias=False),
        nn.BatchNorm2d(WIDTHS[0]),
        nn.ReLU(),
        Block(WIDTHS[0], WIDTHS[0], 1),
    ]
    for inputs, outputs in pairwise(WIDTHS):
        layers += [Block(inputs, outputs, 2), Block(outputs, outputs, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], CLASSES))


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors half of the images and shifts each batch by up to 2 pixels."""
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    down, right = (int(v) for v in torch.randint(0, 5, (2,), generator=generator))
    return functional.pad(x, (2, 2, 2, 2))[:, :, down : down + SIDE, right : right + SIDE]


def train(model: nn.Module, x: Tensor, y: Tensor, check: tuple[Tensor, Tensor], epochs: int, batch: int, seed: int) -> None:
    """SGD with momentum, one learning-rate cycle (Smith, 2018) and label smoothing; prints accuracy on `check` per epoch."""
    generator = torch.Generator().manual_seed(seed)
    steps = len(x) // batch
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.2, total_steps=epochs * steps, pct_start=0.2)
    for epoch in range(epochs):
        started = time.monotonic()
        model.train()
        order = torch.randperm(len(x), generator=generator)
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            images = augment(x[chosen], generator).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(model(images), y[chosen], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        correct = torch_top1(model, *check)
        print(
            f"epoch {epoch + 1}/{epochs}: validation top-1 {correct:.4f}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True
        )


def torch_top1(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of images whose highest logit is their label's."""
    model.eval()
    with torch.no_grad():
        guesses = torch.cat([model(part).argmax(1) for part in x.split(500)])  # type: ignore[no-untyped-call]
    return float((guesses == y).float().mean())


def export(model: nn.Module, path: Path) -> None:
    """Writes the model as ONNX with a free batch axis; the exporter folds the batch normalisations into the convolutions."""
    model.eval()
    program = torch.onnx.export(
        model.to(memory_format=torch.contiguous_format),  # type: ignore[call-overload]
        (torch.zeros(2, 1, SIDE, SIDE),),
        input_names=["x"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    graph = proto.graph
    for owner in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        owner.ClearField("metadata_props")  # traces of the exporting program
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def restore(path: Path) -> nn.Sequential:
    """The network with the weights of the ONNX file that `export` wrote: its folded normalisations become ones that only add."""
    weights = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in onnx.load(path).graph.initializer}
    model, bias = network(), ""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data, bias = weights[f"{name}.weight"], f"{name}.weight_bias"
        elif isinstance(layer, nn.BatchNorm2d):  # of the convolution before it
            layer.running_mean = torch.zeros_like(weights[bias])
            layer.running_var = torch.full_like(weights[bias], 1 - layer.eps)
            layer.weight.data, layer.bias.data = torch.ones_like(weights[bias]), weights[bias]
        elif isinstance(layer, nn.Linear):
            layer.weight.data, layer.bias.data = weights[f"{name}.weight"], weights[f"{name}.bias"]
    model.eval()
    return model


def export_tflite(source: Path, path: Path) -> None:
    """Writes the network of an ONNX file as TFLite, one image at a time, channels last as TFLite's kernels want them: [1, 28, 28, 1]."""
    model = litert_torch.to_channel_last_io(restore(source), args=[0]).eval()
    litert_torch.convert(model, (torch.zeros(1, SIDE, SIDE, 1),)).export(str(path))


def onnx_top1(path: Path, images: Images, labels: Labels) -> float:
    """Top-1 of the file in ONNX Runtime, image by image as on a device."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = as_input(images)
    guesses = [int(np.argmax(session.run(["logits"], {"x": x[i : i + 1]})[0])) for i in range(len(x))]
    return float(np.mean(np.array(guesses) == labels))


def save(path: Path, **arrays: NDArray[Any]) -> None:
    """Writes a compressed npz; equal arrays give equal bytes."""
    np.savez_compressed(path, allow_pickle=False, **arrays)
    print(f"{path.name}: {len(next(iter(arrays.values())))} images, {path.stat().st_size} bytes", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="folder of the four idx.gz files")
    parser.add_argument("--out", type=Path, default=HERE, help="where the files go")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tflite-only", action="store_true", help="only convert the model.onnx of --out")
    options = parser.parse_args()
    path, converted = options.out / "model.onnx", options.out / "model.tflite"
    if options.tflite_only:
        export_tflite(path, converted)
        return

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)

    images, labels = load(options.data, "train")
    validation, calibration, rest = stratified(labels, [VALIDATION, CALIBRATION], options.seed)
    fit = np.concatenate([calibration, rest])
    x, y = torch.from_numpy(as_input(images)), torch.from_numpy(labels)

    model = network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    print(f"{sum(p.numel() for p in model.parameters())} parameters", file=sys.stderr)
    train(model, x[fit], y[fit], (x[validation], y[validation]), options.epochs, options.batch, options.seed)

    options.out.mkdir(parents=True, exist_ok=True)
    export(model, path)
    export_tflite(path, converted)
    print(
        f"{path.name}: {path.stat().st_size} bytes, validation top-1 {onnx_top1(path, images[validation], labels[validation]):.4f}",
        file=sys.stderr,
    )

    save(options.out / "calibration.npz", x=as_input(images[calibration]))
    test_images, test_labels = load(options.data, "t10k")
    selection, evaluation, _ = stratified(test_labels, [SELECTION, EVALUATION], options.seed)
    for name, part in (("selection", selection), ("evaluation", evaluation)):
        save(options.out / f"{name}.npz", x=as_input(test_images[part]), label=test_labels[part])
        print(f"{name}: top-1 {onnx_top1(path, test_images[part], test_labels[part]):.4f}, n = {len(part)}", file=sys.stderr)
    print(f"whole test set: top-1 {onnx_top1(path, test_images, test_labels):.4f}, n = {len(test_labels)}", file=sys.stderr)


if __name__ == "__main__":
    main()
