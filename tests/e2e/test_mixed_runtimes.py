"""One model on devices of different runtimes, with a TFLite file that the user made: each device measures and activates what it can run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from optimizer.engines import import_openvino
from tests import models_optimizer as models
from tests import models_tflite, zoo_twins
from tests.e2e.command import controller, deploy
from tests.e2e.zoo_fleets import write_fleet

SCHEMA = json.loads((Path(__file__).parents[2] / "controller/report/schema.json").read_text())
RECIPES = [
    {"name": "int8", "passes": [{"pass": "quantize_static"}]},
    {"name": "small", "passes": [{"pass": "quantize_tflite", "mode": ["static", "dynamic"]}]},
    {"name": "xml", "passes": [{"pass": "to_openvino"}]},
]
DEVICES = {"onnx": ["onnxruntime"], "lite": ["tflite"], "vino": ["openvino"]}


def write(folder: Path, devices: dict[str, list[str]], recipes: Any = RECIPES, shift: float = 0.0, **model: Any) -> Path:
    """`conv_net` and its TFLite twin, with a fleet file of local devices."""
    fleet = write_fleet(folder, models.save(models.conv_net(), folder / "model.onnx"), name="mixed", metric="cosine")
    models_tflite.conv_net(folder, shift=shift)
    document = json.loads(fleet.read_text())
    document["model"] = {"path": "model.onnx", "alternatives": ["model.tflite"], **model}
    document["devices"] = [{"name": n, "local": {"runtimes": r, "threads": 1}} for n, r in devices.items()]
    document["optimize"] = {"recipes": recipes, "budget": {"variants": 8}}
    fleet.write_text(json.dumps(document))
    return fleet


def test_every_device_runs_its_own_winner(tmp_path: Path) -> None:
    fleet = write(tmp_path, DEVICES)
    document = json.loads(fleet.read_text())
    document["measure"]["budget"]["minutes_per_device"] = 0.3  # every candidate is to be screened
    fleet.write_text(json.dumps(document))
    report = deploy(fleet, "--events", str(tmp_path / "events"))
    jsonschema.validate(report, SCHEMA)
    by_name = {d["name"]: d for d in report["devices"]}
    assert {n: d["winner"]["runtime"] for n, d in by_name.items()} == {"onnx": "onnxruntime", "lite": "tflite", "vino": "openvino"}
    assert by_name["onnx"]["baseline"]["note"] == ""
    assert by_name["lite"]["baseline"]["variant"].startswith("tflite/")
    assert by_name["lite"]["baseline"]["note"].startswith("stands in for the source")
    assert by_name["vino"]["baseline"]["note"].startswith("the source's own file in openvino")
    _check_what_was_measured(by_name)
    _check_what_is_active(by_name)
    text = controller("report", "mixed@1", "--fleet", str(fleet), cwd=tmp_path)
    assert text.code == 0, text.stderr
    assert "tflite xnnpack" in text.stdout
    assert "baseline: stands in for the source" in text.stdout
    assert deploy(fleet)["summary"].startswith("nothing had to be done again")


def _check_what_was_measured(devices: dict[str, Any]) -> None:
    lite = devices["lite"]["candidates"]
    assert {c["artifact"]["format"] for c in lite} == {"tflite"}
    assert {c["variant"].partition("/")[0] for c in lite} == {"tflite", "small-static", "small-dynamic"}
    assert {c["options"]["delegate"] for c in lite} == {"xnnpack", "none"}
    for candidate in lite:
        assert candidate["io"]["inputs"][0]["permutation"] == [0, 2, 3, 1]
        assert (candidate["io"]["inputs"][0]["source"], candidate["io"]["outputs"][0]["source"]) == ("x", "logits")
        assert candidate["lineage"][0]["pass"] == "alternative"
    compared = [c for c in lite if c["accuracy"]]
    assert compared
    assert all(c["accuracy"]["value"] > 0.95 for c in compared)  # in the source's terms: cosine to the source's own answers
    vino = devices["vino"]["candidates"]
    pairs = {(c["variant"].partition("/")[0], c["artifact"]["format"]) for c in vino}
    assert pairs >= {("source", "onnx"), ("int8", "onnx"), ("tflite", "tflite"), ("xml", "openvino"), ("small-static", "tflite")}
    assert not [c["rejected"] for c in vino if (c["rejected"] or "").startswith("failed")]
    xml = next(c for c in devices["vino"]["candidates"] if c["variant"].startswith("xml/"))
    assert [f["name"] for f in xml["artifact"]["files"]] == ["model.bin", "model.xml"]
    assert xml["reproduce"].startswith("edge-agent bench ")
    assert Path(xml["reproduce"].split()[2]).with_suffix(".bin").is_file()


def _check_what_is_active(devices: dict[str, Any]) -> None:
    for device in devices.values():
        active, artifact = Path(device["deployment"]["path"]), device["winner"]["artifact"]
        assert device["deployment"]["state"] == "committed"
        assert active.suffix == {"onnx": ".onnx", "tflite": ".tflite", "openvino": ".xml"}[artifact["format"]]
        assert sum(f.stat().st_size for f in active.parent.iterdir() if f.name != "deployment.json") == artifact["bytes"]
        if artifact["format"] == "openvino":
            assert active.with_suffix(".bin").is_file()


def test_a_several_file_winner_is_activated_whole(tmp_path: Path) -> None:
    """An .xml whose .bin would go by another name does not load."""
    fleet = write(tmp_path, {"vino": ["openvino"]}, "auto", path="own/net.xml", alternatives=[])
    library = import_openvino()
    library.save_model(library.Core().read_model(str(tmp_path / "model.onnx")), str(tmp_path / "own" / "net.xml"))
    device = deploy(fleet)["devices"][0]
    assert (device["winner"]["variant"], device["winner"]["runtime"]) == ("source", "openvino")
    active = Path(device["deployment"]["path"])
    assert {f.name for f in active.parent.iterdir()} >= {"model.xml", "model.bin", "deployment.json"}


def test_an_alternative_whose_tokens_are_narrower(tmp_path: Path) -> None:
    """The source takes int64, the user's TFLite file int32: what is fed, scored and deployed is in the source's terms."""
    twins = zoo_twins.TWINS["tokens"]
    fleet = write_fleet(tmp_path, twins.source(tmp_path), name="tokens")
    (tmp_path / "given").mkdir()
    twins.other(tmp_path / "given")
    document = json.loads(fleet.read_text())
    document["model"]["alternatives"] = ["given/model.tflite"]
    document["devices"] = [{"name": "lite", "local": {"runtimes": ["tflite"]}}]
    document["optimize"] = {"recipes": [{"name": "small", "passes": [{"pass": "quantize_tflite", "mode": "dynamic"}]}]}
    fleet.write_text(json.dumps(document))
    (device,) = deploy(fleet)["devices"]
    tokens = {
        "source": "tokens",
        "name": "serving_default_tokens:0",
        "permutation": None,
        "scale": None,
        "zero_point": None,
        "dtype": "int64",
    }
    assert device["winner"]["io"]["inputs"] == [tokens]
    assert device["winner"]["accuracy"]["value"] > 0.999
    assert device["deployment"]["state"] == "committed"
    statement = json.loads((Path(device["deployment"]["path"]).parent / "deployment.json").read_text())
    assert statement["io"]["inputs"][0]["dtype"] == "int64"


BAD = {
    "another network": ({"shift": 0.5}, "model.tflite: it is not the same network: fed with 'x' as 'serving_default_x:0'"),
    "a cut file": ({}, "model.tflite: not a whole TFLite model"),
    "an .xml without weights": ({"alternatives": ["model.xml"]}, "model.xml: its weights are missing: there is no file model.bin"),
    "one format twice": ({"alternatives": ["other.onnx"]}, "model.alternatives[0]: 'other.onnx' is ONNX, as 'model.onnx' is"),
    "a pass without its model": ({"alternatives": []}, "quantize_tflite reads tflite, the model is onnx; give such a file under"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_alternatives(tmp_path: Path, name: str) -> None:
    changes, message = BAD[name]
    fleet = write(tmp_path, {"lite": ["tflite"]}, **changes)
    (tmp_path / "other.onnx").write_bytes((tmp_path / "model.onnx").read_bytes())
    if name == "a cut file":
        whole = (tmp_path / "model.tflite").read_bytes()
        (tmp_path / "model.tflite").write_bytes(whole[: len(whole) // 2])
    if name == "an .xml without weights":
        library = import_openvino()
        library.save_model(library.Core().read_model(str(tmp_path / "model.onnx")), str(tmp_path / "model.xml"))
        (tmp_path / "model.bin").unlink()
    done = controller("deploy", "--fleet", str(fleet), cwd=tmp_path)
    assert done.code == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_consumer_of_files_is_not_given_another_format(tmp_path: Path) -> None:
    """Without `runtimes` the programs on a device load the source's format, so nothing else is even tried there."""
    fleet = write(tmp_path, {"lite": ["tflite"]}, [{"name": "int8", "passes": [{"pass": "quantize_static"}]}])
    document = json.loads(fleet.read_text())
    document["devices"] = [{"name": "plain", "local": {"threads": 1}}]
    fleet.write_text(json.dumps(document))
    report = deploy(fleet, "--until", "select")
    assert {c["artifact"]["format"] for c in report["devices"][0]["candidates"]} == {"onnx"}
    assert "model.tflite was left out: no device runs tflite" in report["notes"]
    assert np.isfinite(report["devices"][0]["winner"]["latency_ns"]["p50"]["value"])
