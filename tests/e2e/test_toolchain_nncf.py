"""The toolchain `nncf` for real: installed by the command, its pass on what `to_openvino` makes, and a campaign with its variants."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefarm.digest import digest_file
from optimizer import toolchains
from optimizer.passes import PASSES, load_pass
from optimizer.process import PassReply, PassRequest, run_pass
from tests import zoo
from tests.contract import test_passes_formats as formats
from tests.e2e.command import deploy
from tests.e2e.real_toolchains import WHERE, installed
from tests.e2e.zoo_fleets import write_fleet

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", autouse=True)
def toolchain() -> Iterator[None]:
    with installed("nncf"):
        yield


CASES: list[dict[str, Any]] = [{}, {"preset": "mixed"}, {"bias_correction": "thorough"}, {"transformer": True}, {"samples": 3}]


def quantised(folder: Path, *asked: dict[str, Any]) -> list[tuple[PassReply, Path]]:
    """What the pass says of one model as OpenVINO for each of the parameters, checked as every output is; and its output's folder."""
    path, samples = formats.built("onnx", folder / "source")
    _, converted = formats.apply("to_openvino", {}, path, samples, folder / "converted")
    samples.save_inputs(folder / "samples.pack")
    pack, python, found = str(folder / "samples.pack"), str(toolchains.interpreter("nncf")), []
    for number, parameters in enumerate(asked):
        full, work = load_pass("quantize_openvino").parameters.model_validate(parameters).model_dump(), folder / str(number)
        request = PassRequest(
            PASSES["quantize_openvino"], full, str(converted), pack, pack, str(work), "", str(folder / "no"), 600, interpreter=python
        )
        found.append((run_pass(request), work / "out"))
    return found


def test_weights_and_activations_become_integers(tmp_path: Path) -> None:
    for parameters, (reply, out) in zip(CASES, quantised(tmp_path, *CASES)):
        assert reply.outcome == "changed", (parameters, reply.detail)
        assert not reply.plain
        assert "weights of 8 bits" in reply.detail
        assert {p.name for p in out.iterdir()} >= {"model.xml", "model.bin"}


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    folders = [out for _, out in quantised(tmp_path, {}, {})]
    for name in ("model.xml", "model.bin"):
        assert len({digest_file(folder / name) for folder in folders}) == 1, name


def test_a_campaign_measures_it_beside_the_plain_conversion(tmp_path: Path) -> None:
    fleet = write_fleet(tmp_path, zoo.convolution(tmp_path, channels=32), metric="agreement", drop=1.0)
    document: dict[str, Any] = json.loads(fleet.read_text())
    integers = [{"pass": "to_openvino"}, {"pass": "quantize_openvino", "preset": ["performance", "mixed"]}]
    document["optimize"] = {"recipes": [{"name": "plain", "passes": integers[:1]}, {"name": "int8", "passes": integers}]}
    for device in document["devices"]:
        device["local"]["runtimes"] = ["openvino"]
    fleet.write_text(json.dumps(document))
    report = deploy(fleet, changes=WHERE)
    (device,) = report["devices"]
    candidates = {c["variant"].split("/")[0]: c for c in device["candidates"]}
    assert {"plain", "int8-performance", "int8-mixed"} <= candidates.keys()
    assert [step["pass"] for step in candidates["int8-mixed"]["lineage"]] == ["to_openvino", "quantize_openvino"]
    assert "nncf" in candidates["int8-mixed"]["lineage"][-1]["tool_versions"]
    assert all(c["runtime"] == "openvino" for c in candidates.values())
