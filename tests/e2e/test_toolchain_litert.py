"""The toolchain `litert` for real: installed by the command, its pass on every kind of model, and a campaign whose winner it made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefarm.digest import digest_file
from optimizer import toolchains
from optimizer.passes import PASSES
from optimizer.process import PassReply, PassRequest, run_pass
from tests import models_optimizer, zoo
from tests.contract import test_passes
from tests.e2e.command import deploy
from tests.e2e.real_toolchains import WHERE, installed
from tests.e2e.zoo_fleets import write_fleet

REFUSED = {"contrib": ("unsupported_op", "no form in torch is known of operator com.microsoft.Gelu")}
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", autouse=True)
def toolchain() -> Iterator[None]:
    with installed("litert"):
        yield


def converted(model: str, folder: Path) -> tuple[PassReply, Path]:
    """What the pass says of a model of the contract suite, checked as every output is; and its output's folder."""
    path = models_optimizer.save(test_passes.MODELS[model][0](), folder / "m.onnx")
    samples = test_passes.samples(path, model).take(range(4))
    samples.save_inputs(folder / "samples.pack")
    python = toolchains.interpreter("litert")
    request = PassRequest(
        PASSES["to_tflite"], {}, str(path), "", str(folder / "samples.pack"), str(folder / "work"), "", str(folder / "no"), 600,
        interpreter=str(python),
    )  # fmt: skip
    return run_pass(request), folder / "work/out"


@pytest.mark.parametrize("model", test_passes.MODELS)
def test_each_model_is_converted_or_refused_for_a_reason(model: str, tmp_path: Path) -> None:
    reply, out = converted(model, tmp_path)
    if model in REFUSED:
        assert (reply.outcome, reply.kind) == ("failed", REFUSED[model][0])
        assert REFUSED[model][1] in reply.detail
        return
    assert reply.outcome == "changed", reply.detail
    assert reply.plain
    assert (out / "model.tflite").is_file()


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        digests.add(digest_file(converted("conv", tmp_path / name)[1] / "model.tflite"))
    assert len(digests) == 1


def test_a_campaign_on_a_device_that_runs_tflite_files_alone(tmp_path: Path) -> None:
    """The source is ONNX, so its plain conversion stands in for it, and its integers win or lose against that."""
    model = zoo.convolution(tmp_path, channels=32)
    fleet = write_fleet(tmp_path, model, metric="agreement", drop=1.0)
    document: dict[str, Any] = json.loads(fleet.read_text())
    document["optimize"] = {"recipes": "auto", "budget": {"variants": 30}}
    for device in document["devices"]:
        device["local"]["runtimes"] = ["tflite"]
    fleet.write_text(json.dumps(document))
    report = deploy(fleet, changes=WHERE)
    (device,) = report["devices"]
    assert device["baseline"]["variant"].startswith("tflite/")
    candidates = {c["variant"].split("/")[0]: c for c in device["candidates"]}
    assert {"tflite", "tflite-int8-static"} <= candidates.keys()
    first, second = (step["pass"] for step in candidates["tflite-int8-static"]["lineage"][-2:])
    assert (first, second) == ("to_tflite", "quantize_tflite")
    assert "litert-torch" in candidates["tflite"]["lineage"][-1]["tool_versions"]
    assert device["winner"]["runtime"] == "tflite"
