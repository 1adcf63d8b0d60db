"""Training: what is compared with what, the loop that can be cut anywhere, and what pruning and rounding leave behind."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from edgefarm.model import FailureKind
from optimizer import onnx_files
from optimizer.dataset import Dataset
from optimizer.passes import Context, PassFailure
from optimizer.training import channels, fake_quant, norms, zeros
from optimizer.training.fit import Fit, Settings
from optimizer.training.lesson import Lesson, open_lesson
from optimizer.training.losses import Head, Loss, heads, with_labels
from optimizer.training.network import Network
from optimizer.training.parameters import TrainingParameters
from optimizer.training.samples import Samples, blend
from tests import models_optimizer as zoo
from tests.examples import FASHION

N = 48


def samples(labels: bool = True) -> Dataset:
    x = np.random.default_rng(1).normal(size=(N, 1, 3, 8, 8)).astype(np.float32)
    return Dataset({"x": x}, {"y": np.arange(N) % zoo.CLASSES} if labels else {})


def lesson(folder: Path, model: Any | None = None, *, train: Dataset | None = None, checkpoints: Path | None = None) -> Lesson:
    folder.mkdir(parents=True, exist_ok=True)
    path = zoo.save(zoo.conv_net() if model is None else model, folder / "m.onnx")
    (folder / "work").mkdir()
    return open_lesson(path, Context(folder / "work", train=train or samples(), checkpoints=checkpoints))


def run(model: Any, x: Any) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def ended(*nodes: Any, output: str = "y", kind: int = TensorProto.FLOAT) -> Any:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 4, 7])],
        [helper.make_tensor_value_info(output, kind, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (ended(helper.make_node("Softmax", ["z"], ["y"], axis=1)), Head("z", "y", 1)),
        (ended(helper.make_node("ArgMax", ["z"], ["y"], axis=2), kind=TensorProto.INT64), Head("z", "y", 2)),
        (
            ended(
                helper.make_node("Softmax", ["z"], ["p"], axis=2),
                helper.make_node("ReduceMax", ["p"], ["m"], axes=[2], keepdims=0),
                helper.make_node("Identity", ["m"], ["y"]),
            ),
            Head("z", "y", 2),
        ),
        (ended(helper.make_node("Relu", ["z"], ["y"])), Head("y", "y")),
        (ended(helper.make_node("Relu", ["z"], ["r"]), helper.make_node("Identity", ["r"], ["y"])), Head("y", "y")),
    ],
)
def test_heads_lie_before_what_is_reduced(model: Any, head: Head) -> None:
    assert heads(model) == [head]


def test_one_head_for_two_outputs_and_none_for_indices_of_nothing() -> None:
    two = ended(helper.make_node("ArgMax", ["z"], ["y"], axis=2), helper.make_node("Softmax", ["z"], ["p"], axis=2), kind=TensorProto.INT64)
    two.graph.output.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, None))
    assert heads(two) == [Head("z", "y", 2)]
    assert heads(ended(helper.make_node("Shape", ["z"], ["y"]), kind=TensorProto.INT64)) == []


def test_labels_name_the_head_that_they_fit() -> None:
    logits, values = torch.zeros(6, 5), torch.zeros(6, 3)
    found = [Head("v", "v"), Head("l", "l")]
    judged, labels = with_labels(found, [values, logits], {"y": np.array([0, 4, 1, 2, 3, 0]), "weight": np.zeros(6, np.float32)})
    assert (judged, labels) == ([Head("v", "v"), Head("l", "l", -1)], {"l": "y"})
    assert with_labels(found, [values, logits], {"y": np.array([0, 7, 1, 2, 3, 0])})[1] == {}  # no head has eight classes


def test_divergence_by_hand() -> None:
    """KL of softened distributions times the temperature squared: Hinton et al., 2015."""
    student, teacher, t = np.array([[1.0, 2.0, 0.5]]), np.array([[0.0, 3.0, 1.0]]), 2.0
    q, p = (np.exp(z / t) / np.exp(z / t).sum() for z in (student, teacher))
    wanted = float((p * np.log(p / q)).sum()) * t * t
    loss = Loss([Head("l", "l", -1)], {}, t, 0.7, {})
    assert float(loss([torch.tensor(student)], [torch.tensor(teacher)], {})) == pytest.approx(wanted, rel=1e-6)


def test_labels_and_teacher_share_the_loss() -> None:
    logits, same = torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    loss = Loss([Head("l", "l", -1)], {"l": "y"}, 4.0, 0.25, {})
    wanted = 0.25 * math.log(1 + math.exp(2.0))  # the teacher agrees, so only the label's share is left
    assert float(loss([logits], [same], {"y": torch.tensor([1])})) == pytest.approx(wanted, rel=1e-6)


def test_values_are_compared_in_units_of_their_variance() -> None:
    mine, its = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])
    assert float(Loss([Head("v", "v")], {}, 4.0, 0.5, {"v": 10.0})([mine], [its], {})) == pytest.approx((1 + 4) / 2 / 10)


def test_regularisation_by_hand(tmp_path: Path) -> None:
    """One step without any other loss moves each weight against its penalty's gradient; L1's is a sign, L2's the weight itself."""
    for settings_, wanted in ((Settings(1, l1=1.0), torch.sign), (Settings(1, l2=1.0), lambda w: 2 * w)):
        opened = lesson(tmp_path / f"{settings_.l1}")
        fit = Fit(opened.student, opened.teacher, opened.samples, Loss([], {}, 1.0, 0.0, {}), settings_)
        penalty = fit._penalty()
        penalty.backward()
        layer = next(opened.student.layer_calls())[1].inner
        assert torch.allclose(layer.weight.grad, wanted(layer.weight.detach()), rtol=1e-5)
        assert layer.bias.grad is None


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_training_brings_the_student_to_its_teacher(tmp_path: Path, mix: float) -> None:
    opened = lesson(tmp_path)
    assert opened.labelled
    with torch.no_grad():
        for parameter in opened.student.parameters():
            parameter.mul_(0.5)
    before = float(opened.loss_of_some(opened.student, TrainingParameters(hard=0.0)).detach())
    lines: list[str] = []
    opened.context = replace(opened.context, tell=lines.append)
    fitted = opened.fit(TrainingParameters(epochs=12, batch=8, hard=0.0, mix=mix))
    after = float(opened.loss_of_some(opened.student, TrainingParameters(hard=0.0)).detach())
    assert after < before / 4
    assert min(fitted.losses) == fitted.losses[fitted.best]
    assert lines[0].startswith("step 1 of 72")
    assert lines[-1].endswith("0 s left")


def test_without_labels_the_teachers_word_is_all(tmp_path: Path) -> None:
    opened = lesson(tmp_path, train=samples(labels=False))
    assert not opened.labelled
    assert opened.heads == [Head("logits", "logits")]
    assert float(opened.loss_of_some(opened.student, TrainingParameters(hard=0.9)).detach()) == pytest.approx(0, abs=1e-8)


def test_a_blend_lies_between_its_samples_by_rows() -> None:
    one, other = torch.full((4, 2, 3), 10.0), torch.zeros(4, 2, 3)
    blended = blend(one, other, torch.tensor([0.25, 1.0]))  # two samples of two rows
    assert blended[:, 0, 0].tolist() == [2.5, 2.5, 10.0, 10.0]


def test_the_teacher_says_of_inputs_what_it_says_of_samples(tmp_path: Path) -> None:
    opened = lesson(tmp_path)
    for together, alone in zip(opened.teacher.ask(opened.samples.inputs([3, 5])), opened.teacher([3, 5])):
        torch.testing.assert_close(together, alone)


def test_only_what_lies_between_numbers_is_blended(tmp_path: Path) -> None:
    floats = np.zeros((4, 1, 3), np.float32)
    assert Samples(Dataset({"x": floats}), ["x"], batched=True).blendable
    assert not Samples(Dataset({"x": floats}), ["x"], batched=False).blendable
    assert not Samples(Dataset({"x": floats, "ids": np.zeros((4, 1), np.int64)}), ["x", "ids"], batched=True).blendable
    apart = lesson(tmp_path)
    apart.samples = replace(apart.samples, batched=False)
    with pytest.raises(PassFailure, match="mix blends inputs"):
        apart.fit(TrainingParameters(mix=0.5))
    with pytest.raises(ValueError, match="mix needs the teacher"):
        TrainingParameters(mix=0.5, hard=1.0)


class _Cut(Exception):
    pass


@settings(max_examples=6, deadline=None)
@given(cut=st.integers(1, 17), mix=st.sampled_from([0.0, 0.5]))
def test_a_training_that_is_cut_ends_as_one_that_was_not(tmp_path_factory: pytest.TempPathFactory, cut: int, mix: float) -> None:
    """As after SIGKILL: nothing but the checkpoint is left, and the network is as it was before training."""
    folder = tmp_path_factory.mktemp("cut")
    parameters = TrainingParameters(epochs=3, batch=8, mix=mix)

    def opened(name: str, checkpoints: Path | None, tell: Any) -> Lesson:
        made = lesson(folder / name, checkpoints=checkpoints)
        made.context = replace(made.context, tell=tell)
        with torch.no_grad():
            for parameter in made.student.parameters():
                parameter.mul_(0.5)
        return made

    def until(line: str) -> None:
        if line.startswith(f"step {cut} of"):
            raise _Cut

    whole = opened("whole", None, lambda line: None)
    wanted = whole.fit(parameters)
    with pytest.raises(_Cut):
        opened("first", folder / "kept", until).fit(parameters)
    lines: list[str] = []
    again = opened("second", folder / "kept", lines.append)
    fitted = again.fit(parameters)
    assert fitted == wanted
    assert len(lines) == 18 - cut // 6 * 6  # from the last whole epoch of six steps
    assert again.student.to_model() == whole.student.to_model()


def test_a_broken_checkpoint_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "training.pt").write_bytes(b"not whole")
    assert lesson(tmp_path / "a", checkpoints=tmp_path / "kept").fit(TrainingParameters(epochs=1)).steps == 1


def test_training_stops_where_nothing_gets_better(tmp_path: Path) -> None:
    opened = lesson(tmp_path, train=samples(labels=False))  # the student is its teacher already
    fitted = opened.fit(TrainingParameters(epochs=50, batch=8, learning_rate=0.05, patience=2))
    assert fitted.stopped
    assert len(fitted.losses) == fitted.best + 3


def test_norms_change_nothing_and_fold_back(tmp_path: Path) -> None:
    opened = lesson(tmp_path)
    x = samples().inputs["x"][:4, 0]
    before = run(opened.original, x)
    assert opened.normalise() == 2
    opened.student.eval()
    with torch.no_grad():
        np.testing.assert_allclose(opened.student(torch.from_numpy(x))[0].numpy(), before, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(run(opened.student.to_model(), x), before, rtol=1e-3, atol=1e-4)
    for parameter in opened.student.parameters():
        parameter.data.add_(0.1)
    with torch.no_grad():
        got = opened.student(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(run(opened.student.to_model(), x), got, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("importance", channels.IMPORTANCES)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_channels_go_and_the_rest_fits_together(tmp_path: Path, importance: str, scope: str) -> None:
    opened = lesson(tmp_path, zoo.depthwise_chain())
    opened.normalise()
    shears = channels.Shears(0.5, importance, 4, scope)
    pruned, cut = channels.prune(opened.student, opened.example(), shears, lambda n: opened.loss_of_some(n, TrainingParameters()))
    assert cut.weights[1] < cut.weights[0]
    assert cut.products[1] < cut.products[0]
    model = pruned.to_model()
    onnx.checker.check_model(model)
    x = samples().inputs["x"][:4, 0]
    pruned.eval()
    with torch.no_grad():
        np.testing.assert_allclose(run(model, x), pruned(torch.from_numpy(x))[0].numpy(), rtol=1e-3, atol=1e-4)
    assert run(model, x).shape == (4, zoo.CLASSES)
    if scope == "layer":
        assert all(w.dims[0] % 4 == 0 for w in model.graph.initializer if len(w.dims) == 4)


def test_channels_that_matter_least_go_first(tmp_path: Path) -> None:
    model = zoo.depthwise_chain()
    quiet = [1, 2, 5, 7]
    for weight in model.graph.initializer:
        if weight.name in ("w1", "b1", "wd", "w2"):
            values = onnx.numpy_helper.to_array(weight).copy()
            values[(slice(None), quiet) if weight.name == "w2" else quiet] *= 1e-3
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    opened = lesson(tmp_path, model)
    x = samples().inputs["x"][:4, 0]
    for importance in ("l1", "l2", "taylor", "activation"):
        shears = channels.Shears(0.5, importance, 4)
        pruned, _ = channels.prune(opened.student, opened.example(), shears, lambda n: opened.loss_of_some(n, TrainingParameters()))
        kept = {i.name: onnx.numpy_helper.to_array(i) for i in pruned.to_model().graph.initializer}["w1"]
        original = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}["w1"]
        np.testing.assert_array_equal(kept, np.delete(original, quiet, axis=0), err_msg=importance)
    assert run(opened.student.to_model(), x).shape == (4, zoo.CLASSES)  # what was pruned was a copy


def test_nothing_to_take_out(tmp_path: Path) -> None:
    opened = lesson(tmp_path)
    with pytest.raises(PassFailure, match=r"no channel can be taken out at ratio 0\.1 and multiples of 8") as caught:
        channels.prune(opened.student, opened.example(), channels.Shears(0.1), lambda n: torch.zeros(()))
    assert caught.value.kind is FailureKind.UNCHANGED


def test_taylor_importance_is_weight_times_gradient() -> None:
    """First-order Taylor expansion, |w * dL/dw| (Molchanov et al., 2019), here for each weight."""
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    (linear(torch.tensor([[2.0, 1.0]])) * torch.tensor([1.0, -1.0])).sum().backward()  # dL/dw = [[2, 1], [-2, -1]]
    assert zeros._importance(linear, "gradient").tolist() == [[2.0, 2.0], [6.0, 0.5]]
    assert zeros._importance(linear, "magnitude").tolist() == [[1.0, 2.0], [3.0, 0.5]]


@pytest.mark.parametrize(("scope", "pattern"), [("global", "any"), ("layer", "any"), ("layer", "2:4")])
def test_zeros_stay_zero(tmp_path: Path, scope: str, pattern: str) -> None:
    opened = lesson(tmp_path, zoo.depthwise_chain())
    rule = zeros.Rule(pattern, "magnitude", scope)
    for share in zeros.schedule(0.5, 2):
        zeros.prune(opened.student, share, rule, None)
        opened.fit(TrainingParameters(epochs=1, batch=16))
    count = zeros.settle(opened.student)
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in opened.student.to_model().graph.initializer}
    weights = [stored[name] for name in ("w1", "wd", "w2", "w3")]
    assert sum(int((w == 0).sum()) for w in weights) == count.zeros
    if pattern == "2:4":
        rows = np.moveaxis(stored["w2"], 1, -1).reshape(-1, 4)  # 1x1 convolution over 8 channels
        assert (np.count_nonzero(rows, axis=1) == 2).all()
    else:
        assert count.zeros / count.weights == pytest.approx(0.5, abs=0.01)
    if scope == "layer" and pattern == "any":
        assert all(np.mean(w == 0) == pytest.approx(0.5, abs=0.03) for w in weights)


def test_two_of_four_needs_channels_by_fours(tmp_path: Path) -> None:
    opened = lesson(tmp_path, train=samples())
    for layer in zeros._layers(opened.student):
        layer.weight = nn.Parameter(layer.weight[:, :3])
    with pytest.raises(PassFailure, match="no layer's input channels are a multiple of four"):
        zeros.prune(opened.student, 0.5, zeros.Rule("2:4", "magnitude", "layer"), None)


@given(sparsity=st.floats(0.01, 0.99), rounds=st.integers(1, 20))
def test_the_schedule_rises_to_its_end(sparsity: float, rounds: int) -> None:
    shares = zeros.schedule(sparsity, rounds)
    assert shares[-1] == pytest.approx(sparsity)
    assert all(a < b for a, b in pairwise(shares))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounded_training_leaves_weights_on_the_grid(tmp_path: Path, bits: int) -> None:
    opened = lesson(tmp_path)
    assert fake_quant.insert(opened.student, bits, 8) == 3
    opened.fit(TrainingParameters(epochs=1, batch=16, learning_rate=1e-3))
    fake_quant.settle(opened.student)
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in opened.student.to_model().graph.initializer}
    for values in (stored["w1"].reshape(8, -1), stored["w2"].reshape(8, -1), stored["w3"].T):
        steps = values / (np.abs(values).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1))
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert all(layer.rounded is None for _, layer in opened.student.layer_calls())


def test_norm_statistics_are_those_of_the_outputs(tmp_path: Path) -> None:
    opened = lesson(tmp_path)
    first = next(opened.student.layer_calls())[1]
    inputs = [opened.samples.inputs(range(N))]
    with torch.no_grad():
        output = first.inner(inputs[0][0])
    norms.insert(opened.student, inputs)
    torch.testing.assert_close(first.norm.running_mean, output.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.norm.running_var, output.var((0, 2, 3), unbiased=False), rtol=1e-4, atol=1e-5)


def test_a_fixed_batch_of_one_is_trained_in_batches(tmp_path: Path) -> None:
    model = zoo.conv_net(batch=1)
    assert lesson(tmp_path, model).samples.batched


def test_what_cannot_be_joined_is_trained_one_by_one(tmp_path: Path) -> None:
    """Means over all samples mix them, so a batch would be another network."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1), helper.make_node("Sub", ["x", "m"], ["s"]),
             helper.make_node("Flatten", ["s"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["logits"])]  # fmt: skip
    sides = {"x": (TensorProto.FLOAT, ["N", 3, 8, 8])}, {"logits": (TensorProto.FLOAT, ["N", zoo.CLASSES])}
    model = zoo.build(nodes, *sides, {"w": np.random.default_rng(0).normal(size=(192, zoo.CLASSES)).astype(np.float32)}, 17)
    opened = lesson(tmp_path, model)
    assert not opened.samples.batched
    assert opened.normalise() == 0
    assert opened.fit(TrainingParameters(epochs=1, batch=16)).steps == 3


def test_no_samples_and_no_floats_are_refused(tmp_path: Path) -> None:
    path = zoo.save(zoo.conv_net(), tmp_path / "m.onnx")
    with pytest.raises(PassFailure, match=r"needs samples \(data.train\)"):
        open_lesson(path, Context(tmp_path))


def test_the_network_is_a_copy_of_the_graph() -> None:
    model = zoo.conv_net()
    network = Network(model)
    assert network.to_model() == model
    assert network.to_model() is not model


@pytest.mark.parametrize(
    ("out", "channels_", "multiple", "left"),
    [(16, 32, 8, 16), (29, 32, 8, 8), (32, 32, 8, 8), (115, 128, 8, 8), (10, 32, 8, 16), (3, 4, 8, 4)],
)
def test_a_multiple_of_channels_is_left_and_at_least_one(out: int, channels_: int, multiple: int, left: int) -> None:
    assert channels_ - channels._at_least_one(out, channels_, multiple) == left


def test_a_bolder_ratio_never_leaves_more(tmp_path: Path) -> None:
    """Layers of 32 channels at .9 would be rounded down to none, and stay whole."""
    model = onnx_files.load(onnx_files.prepare(FASHION / "model.onnx", tmp_path, opset=11))
    sizes = []
    for ratio in (0.5, 0.7, 0.9):
        network, example = Network(model), [torch.zeros(1, 1, 28, 28)]
        network.relax_reshapes(example)
        sizes.append(channels.prune(network, example, channels.Shears(ratio), lambda n: None)[1])
    assert sorted((s.weights[1], s.products[1]) for s in sizes) == [(s.weights[1], s.products[1]) for s in reversed(sizes)]
    assert sizes[-1].weights[1] < 0.05 * sizes[-1].weights[0]
    assert sizes[-1].products[1] < sizes[0].products[1]
