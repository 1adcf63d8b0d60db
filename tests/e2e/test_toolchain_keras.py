"""The toolchain `keras` for real: Keras files as sources, the Model Optimization Toolkit's methods on them, and a campaign."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any
from zipfile import ZipFile

import numpy as np
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter

from edgefarm.digest import digest_file
from edgefarm.errors import UserError
from optimizer import toolchains
from optimizer.dataset import Dataset
from optimizer.exported import Exported
from optimizer.keras_source import LITE, ONNX, export, original
from optimizer.passes import PASSES
from optimizer.process import PassReply, PassRequest, run_pass
from optimizer.source import load_source
from tests.e2e.command import deploy
from tests.e2e.real_toolchains import WHERE, installed
from tests.examples import EXAMPLES

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
Arrays = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def toolchain() -> Iterator[None]:
    with installed("keras"):
        yield


@pytest.fixture(scope="module")
def models(toolchain: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    python = str(toolchains.interpreter("keras"))
    subprocess.run([python, str(Path(__file__).with_name("keras_models.py")), str(folder)], check=True, timeout=600)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def onnx_answers(path: Path, feeds: Arrays) -> list[Any]:
    session = onnxruntime.InferenceSession(str(path))
    return list(session.run(None, feeds))


def lite(path: Path) -> Interpreter:
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def lite_answers(path: Path, feeds: Arrays) -> list[Any]:
    interpreter = lite(path)
    for detail in interpreter.get_input_details():
        (value,) = (v for n, v in feeds.items() if n in detail["name"])
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]


FEEDS: dict[str, Arrays] = {
    **{name: {"image": (12, 12, 3)} for name in ("three.keras", "three.h5", "two.keras", "two.h5")},
    "operators.keras": {"x": (8,)},
    "sequential.keras": {"x": (10,)},
    "two_inputs.keras": {"words": (6,), "extra": (4,)},
}


@pytest.mark.parametrize("name", FEEDS)
def test_both_exports_are_one_network_under_the_names_of_the_keras_model(name: str, models: Path, store: Path) -> None:
    made = export(models / name, store)
    assert (made.path.name, [o.name for o in made.others], made.without) == (ONNX, [LITE], "")
    random = np.random.default_rng(0)
    feeds = {n: random.random((1, *s)).astype(np.float32) for n, s in FEEDS[name].items()}
    if "words" in feeds:
        feeds["words"] = random.integers(0, 20, (1, 6)).astype(np.int32)
    signature = load_source(made.path).signature
    assert {i.name for i in signature.inputs} == set(feeds)
    assert all(i.shape[0] is None for i in signature.inputs)
    wanted, got = onnx_answers(made.path, feeds), lite_answers(made.others[0], feeds)
    for value in wanted:
        assert any(value.shape == v.shape and np.allclose(value, v, atol=1e-4) for v in got)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("with_lambda.keras", "it holds a Lambda layer, which is Python code"),
        ("with_lambda.h5", "it holds a Lambda layer, which is Python code"),
        ("old_lambda.h5", "it holds a Lambda layer, which is Python code"),
        ("elsewhere.keras", "Keras knows no function, a class of your own"),
        ("custom.keras", "Keras knows no Scale, a class of your own"),
        ("cut.keras", "Keras does not read it"),
        ("text.h5", "Keras does not read it"),
    ],
)
def test_what_cannot_be_read_is_told(name: str, told: str, models: Path, store: Path) -> None:
    (models / "cut.keras").write_bytes((models / "three.keras").read_bytes()[:5000])
    (models / "text.h5").write_text("no model")
    with ZipFile(models / "elsewhere.keras", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "2.15.0"}))
        function = {"module": "antigravity", "class_name": "function", "config": "fly", "registered_name": "function"}
        archive.writestr("config.json", json.dumps({"module": "keras", "class_name": "Sequential", "config": {"layers": [function]}}))
    with pytest.raises(UserError, match=f"{name}: {told}"):
        export(models / name, store)


def request(made: Exported, models: Path, folder: Path, **parameters: Any) -> PassRequest:
    """The pass on the TFLite file that `made` holds."""
    path, keras = made.others[0], original(made)
    assert keras is not None
    (name,) = (i.name for i in load_source(path).signature.inputs)
    folder.mkdir(exist_ok=True)
    with np.load(models / "train.npz") as arrays:
        data = Dataset({name: arrays["image"][:, None]}, {"label": arrays["label"]})
    data.save(folder / "train.pack")
    data.take(range(8)).save_inputs(folder / "probe.pack")
    given = {"original": keras.artifact.digest, "epochs": 20.0, "batch": 32, "learning_rate": 2e-3, **parameters}
    return PassRequest(
        PASSES["tfmot"], given, str(path), "", str(folder / "probe.pack"), str(folder / "pass"), "", str(folder / "cancel"), 900,
        given={keras.artifact.digest: str(keras.path)}, train=str(folder / "train.pack"), origin=str(made.path),
        checkpoints=str(folder / "checkpoints"), interpreter=str(toolchains.interpreter("keras")),
    )  # fmt: skip


def tuned(made: Exported, models: Path, folder: Path, **parameters: Any) -> tuple[PassReply, Path]:
    asked = request(made, models, folder, **parameters)
    return run_pass(asked), Path(asked.work_dir) / "out" / LITE


def weights(path: Path) -> list[Any]:
    """Arrays of a TFLite file that are large enough to be kernels."""
    interpreter, found = lite(path), []
    for detail in interpreter.get_tensor_details():
        try:
            value = interpreter.get_tensor(detail["index"])
        except ValueError:  # not a constant
            continue
        if value.ndim > 1 and value.size > 90 and detail["index"] not in {d["index"] for d in interpreter.get_input_details()}:
            found.append(value)
    return found


METHODS: dict[str, dict[str, Any]] = {
    "pruned": {"sparsity": 0.75, "quantize_aware": False},
    "two of four": {"two_of_four": True, "quantize_aware": False},
    "clustered": {"clusters": 8, "quantize_aware": False},
    "quantised": {},
    "pruned and clustered": {"sparsity": 0.5, "clusters": 8, "quantize_aware": False},
    "pruned and quantised": {"sparsity": 0.5},
    "all": {"sparsity": 0.5, "clusters": 8},
}


@pytest.mark.parametrize(("method", "generation"), [*((m, "three.keras") for m in METHODS), ("all", "two.h5")])
def test_each_method_leaves_its_mark_in_the_file(method: str, generation: str, models: Path, store: Path, tmp_path: Path) -> None:
    made, parameters = export(models / generation, store), METHODS[method]
    reply, path = tuned(made, models, tmp_path, **parameters)
    assert reply.outcome == "changed", reply.detail
    found = [w for w in weights(path) if w.dtype == (np.int8 if parameters.get("quantize_aware", True) else np.float32)]
    assert found
    largest = max(found, key=lambda w: w.size)
    if "sparsity" in parameters:
        assert (largest == 0).mean() >= parameters["sparsity"] - 0.03
    if "two_of_four" in parameters:
        assert (largest == 0).mean() == pytest.approx(0.5, abs=0.05)
    if "clusters" in parameters and not parameters.get("quantize_aware", True):
        assert len(np.unique(largest)) <= parameters["clusters"] + 1
    with np.load(models / "evaluation.npz") as arrays:
        right = [int(np.argmax(lite_answers(path, {"image": image[None]})[0])) for image in arrays["image"]]
        assert np.mean(right == arrays["label"]) > 0.9


def test_the_examples_own_layer_computes_in_integers(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "train.npz", x=random.random((640, 28, 28, 1)).astype(np.float32), label=random.integers(0, 10, 640))
    script, out = EXAMPLES / "keras/quantize_config.py", tmp_path / "own.tflite"
    python = str(toolchains.interpreter("keras"))
    subprocess.run([python, str(script), "--data", str(tmp_path / "train.npz"), "--out", str(out)], check=True, timeout=600)
    signature = load_source(out).signature
    assert {s.dtype for s in (*signature.inputs, *signature.outputs)} == {"float32"}
    assert signature.weight_dtypes["int8"] == 4, "two kernels, the matrix and the scale"
    assert signature.op_types["MUL"] == 1


def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(models: Path, store: Path, tmp_path: Path) -> None:
    made = export(models / "three.keras", store)
    how: dict[str, Any] = {"sparsity": 0.5, "epochs": 6.0}
    _, whole = tuned(made, models, tmp_path / "whole", **how)
    asked = request(made, models, tmp_path / "cut", **how)
    done = tmp_path / "cut/checkpoints/quantisation/done.json"

    def cancel() -> None:
        while not done.exists():
            time.sleep(0.05)
        Path(asked.cancel).touch()

    watcher = Thread(target=cancel)
    watcher.start()
    assert run_pass(asked).outcome == "cancelled"
    watcher.join()
    assert 1 <= json.loads(done.read_text())["epochs"] < 6
    Path(asked.cancel).unlink()
    (tmp_path / "cut/pass").rename(tmp_path / "cut/before")
    reply = run_pass(asked)
    assert reply.outcome == "changed", reply.detail
    assert digest_file(tmp_path / "cut/pass/out" / LITE) == digest_file(whole)


def test_a_campaign_from_a_keras_file(models: Path, tmp_path: Path) -> None:
    """A device for each format, one that runs both; `auto` trains with the roundings of int8 where TFLite runs."""
    fleet = tmp_path / "edge.yaml"
    for name in ("train.npz", "evaluation.npz", "calibration.npz", "three.keras"):
        (tmp_path / name).write_bytes((models / name).read_bytes())
    document = {
        "version": 1,
        "name": "keras",
        "model": {"path": "three.keras"},
        "data": {n: f"{n}.npz" for n in ("train", "calibration", "evaluation")} | {"metric": "top1"},
        "devices": [{"name": "phone", "local": {"threads": 1}}, {"name": "gate", "local": {"runtimes": ["onnxruntime"], "threads": 1}}],
        "optimize": {
            "recipes": [
                {"name": "int8", "passes": [{"pass": "quantize_static"}]},
                {"name": "aware", "passes": [{"pass": "tfmot"}]},
            ]
        },
        "select": {"objective": "latency_p50", "constraints": {"accuracy_drop": 0.02}},
        "rollout": {"activate": "file"},
    }
    fleet.write_text(json.dumps(document))
    report = deploy(fleet, changes=WHERE)
    phone, gate = report["devices"]
    assert (phone["winner"]["runtime"], gate["winner"]["runtime"]) == ("tflite", "onnxruntime")
    candidates = {c["variant"].split("/")[0]: c for c in phone["candidates"]}
    assert {"tflite", "aware"} <= candidates.keys()
    step = candidates["aware"]["lineage"][-1]
    assert step["pass"] == "tfmot"
    assert step["parameters"]["original"] == digest_file(tmp_path / "three.keras")
    assert {"tensorflow", "tensorflow-model-optimization"} <= step["tool_versions"].keys()
    again = deploy(fleet, changes=WHERE)
    assert [d["winner"] for d in again["devices"]] == [d["winner"] for d in report["devices"]]
