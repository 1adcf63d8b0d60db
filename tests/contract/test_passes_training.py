"""What every pass that trains promises besides: it says what it learnt, and a kill in the middle costs nothing but time.

A pass that trains is added here by one parameter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefarm.digest import digest_file
from edgefarm.model import FailureKind
from optimizer import checks
from optimizer.dataset import Dataset
from optimizer.passes import Changed, Context, PassFailure, load_pass
from optimizer.pipeline import Event, Failed, Pipeline, Variant
from optimizer.recipe import Plan, Step
from optimizer.source import inspect_model, load_source
from tests import models_optimizer as zoo

CASES: list[tuple[str, dict[str, Any]]] = [
    ("prune_structured", {"multiple": 1, "ratio": 0.25}),
    ("prune_structured", {"multiple": 4, "importance": "taylor", "scope": "global"}),
    ("prune_weights", {}),
    ("prune_weights", {"pattern": "2:4", "importance": "gradient", "rounds": 1}),
    ("distill", {"l1": 1e-4, "l2": 1e-4, "mix": 0.5}),
    ("distill", {"width": 0.5, "multiple": 2, "fresh": True, "hard": 0.0}),
    ("quantize_aware", {}),
    ("quantize_aware", {"weight_bits": 4, "hard": 0.5}),
]
IDS = ["-".join([name, *(f"{k}={v}" for k, v in parameters.items())]) for name, parameters in CASES]
MODELS = {
    "conv": zoo.conv_net,
    "conv-opset9": lambda: zoo.conv_net(opset=9),
    "conv-opset21": lambda: zoo.conv_net(opset=21),
    "conv-batch1": lambda: zoo.conv_net(batch=1),
    "depthwise": lambda: zoo.conv_net(groups=8),
    "chain": zoo.depthwise_chain,
    "constants": lambda: zoo.conv_net(constants=True),
}
N = 24


def train(path: Path, n: int = N, labels: bool = True) -> Dataset:
    rows = {"x": np.random.default_rng(5).normal(size=(n, 3, 8, 8)).astype(np.float32)}
    np.savez(path.parent / "train.npz", **rows, **({"y": np.arange(n) % zoo.CLASSES} if labels else {}))
    return Dataset.load(path.parent / "train.npz", inspect_model(path), with_targets=True)


def apply(name: str, parameters: dict[str, Any], path: Path, folder: Path, samples: Dataset | None) -> tuple[Changed, Path]:
    used = load_pass(name)
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    given = {"epochs": 1.0, "batch": 8, **parameters}
    return used.run(
        path, out, used.parameters.model_validate(given), None, Context(scratch, train=samples, origin=path)
    ), out / "model.onnx"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "parameters"), CASES, ids=IDS)
def test_output_stands_the_checks(tmp_path: Path, name: str, parameters: dict[str, Any], model: str) -> None:
    path = zoo.save(MODELS[model](), tmp_path / "m.onnx")
    samples = train(path)
    changed, output = apply(name, parameters, path, tmp_path, samples)
    used = load_pass(name)
    assert "steps, validation loss" in changed.detail
    assert checks.io_difference(inspect_model(path), inspect_model(output)) == ""
    fresh = parameters.get("fresh", False)
    checks.EVIDENCE[used.evidence](path, output, inspect_model(path), inspect_model(output))
    if not fresh:  # which starts anywhere
        checks.check(path, output, used, Dataset(samples.inputs).take(range(4)))


@pytest.mark.parametrize(("name", "parameters"), CASES, ids=IDS)
def test_equal_input_gives_equal_bytes(tmp_path: Path, name: str, parameters: dict[str, Any]) -> None:
    path = zoo.save(zoo.depthwise_chain(), tmp_path / "m.onnx")
    samples = train(path)
    assert len({digest_file(apply(name, parameters, path, tmp_path / str(i), samples)[1]) for i in range(2)}) == 1


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_it_needs_samples_and_says_so(tmp_path: Path, name: str) -> None:
    path = zoo.save(zoo.conv_net(), tmp_path / "m.onnx")
    assert load_pass(name).parameters().needs_training
    with pytest.raises(PassFailure, match=r"data\.train"):
        apply(name, {}, path, tmp_path, None)


@pytest.mark.parametrize("model", ["text", "state"])
@pytest.mark.parametrize("name", ["distill", "quantize_aware", "prune_weights"])
def test_several_inputs_states_and_open_axes(tmp_path: Path, name: str, model: str) -> None:
    path = zoo.save({"text": zoo.text_net, "state": zoo.state_net}[model](), tmp_path / "m.onnx")
    np.savez(tmp_path / "t.npz", **zoo.SAMPLES[model])
    samples = Dataset.load(tmp_path / "t.npz", inspect_model(path), with_targets=True)
    changed, output = apply(name, {}, path, tmp_path, samples)
    assert "steps, validation loss" in changed.detail
    assert checks.io_difference(inspect_model(path), inspect_model(output)) == ""
    assert output.read_bytes() != path.read_bytes()
    checks.check(path, output, load_pass(name), Dataset(samples.inputs).take(range(4)))


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_what_cannot_be_trained_is_a_result(tmp_path: Path, name: str) -> None:
    path = zoo.save(zoo.contrib_net(), tmp_path / "m.onnx")
    np.savez(tmp_path / "t.npz", **zoo.SAMPLES["pool"])
    samples = Dataset.load(tmp_path / "t.npz", inspect_model(path), with_targets=True)
    with pytest.raises(PassFailure, match=r"no form in torch is known of operator com\.microsoft\.") as caught:
        apply(name, {}, path, tmp_path, samples)
    assert caught.value.kind is FailureKind.UNSUPPORTED_OP


def test_labels_alone_must_be_there(tmp_path: Path) -> None:
    path = zoo.save(zoo.conv_net(), tmp_path / "m.onnx")
    with pytest.raises(PassFailure, match="hard: 1 learns from labels alone"):
        apply("distill", {"hard": 1.0}, path, tmp_path, train(path, labels=False))


def test_a_killed_training_goes_on_where_it_was(tmp_path: Path) -> None:
    """The pass's process is killed in the middle; the next run ends with the bytes of one that never was."""
    path = zoo.save(zoo.depthwise_chain(), tmp_path / "m.onnx")
    source, samples = load_source(path), train(path, 640)
    plan = Plan("pruned", (Step("prune_structured", {"multiple": 4, "epochs": 16.0, "batch": 16}),))
    killed: list[str] = []

    def run(cache: str, *, kill: bool) -> tuple[list[Any], list[str]]:
        lines: list[str] = []

        def hear(event: Event) -> None:
            if event.kind == "working":
                lines.append(event.detail)
                if kill and "validation loss" in event.detail:
                    killed.append(event.detail)

        pipeline = Pipeline(tmp_path / cache, workers=1, lock_path=tmp_path / "lock")
        return pipeline.run(source, [plan], None, None, hear, cancelled=lambda: kill and bool(killed), train=samples), lines

    assert run("cut", kill=True)[0] == []  # cancelled: no end yet
    assert len(list((tmp_path / "cut" / "training").iterdir())) == 1
    (variant,), lines = run("cut", kill=False)
    (wanted,), _ = run("whole", kill=False)
    assert isinstance(variant, Variant)
    assert isinstance(wanted, Variant)
    assert variant.artifact.digest == wanted.artifact.digest
    first = int(lines[0].split()[1]) if lines else 10**6
    assert first > 36  # steps of the first epoch are not done again
    assert list((tmp_path / "cut" / "training").iterdir()) == []


@pytest.mark.long
def test_other_samples_or_another_teacher_are_another_result(tmp_path: Path) -> None:
    path = zoo.save(zoo.depthwise_chain(), tmp_path / "m.onnx")
    source = load_source(path)
    plan = Plan("pruned", (Step("prune_structured", {"multiple": 4, "epochs": 1.0}),))
    digests = set()
    for n in (24, 32):
        (variant,) = Pipeline(tmp_path / "cache", lock_path=tmp_path / "lock").run(source, [plan], None, None, train=train(path, n))
        assert isinstance(variant, Variant)
        digests.add(variant.artifact.digest)
    assert len(digests) == 2
    (failed,) = Pipeline(tmp_path / "cache", lock_path=tmp_path / "lock").run(source, [plan], None, None)
    assert isinstance(failed, Failed)
    assert "data.train" in failed.failure.detail
