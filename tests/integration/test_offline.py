"""`edge-agent bench` on every format."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.runtimes import is_installed
from edgefarm.digest import artifact_digest, digest_file
from tests import zoo

if not (is_installed("tflite") and is_installed("openvino")):
    pytest.skip("needs both runtimes: pip install 'edgefarm[tflite,openvino]'", allow_module_level=True)

from tests import zoo_openvino, zoo_tflite


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dense as model.onnx, model.tflite and model.xml with its model.bin."""
    folder = tmp_path_factory.mktemp("models")
    zoo.dense(folder)
    zoo_tflite.dense(folder)
    zoo_openvino.dense(folder)
    return folder


def bench(model: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    lock = str(model.parent / "lock")
    command = [sys.executable, "-m", "agent.cli", "bench", str(model), "--threads", "1", "--launches", "2", "--measure-lock", lock]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)


def report(model: Path, *arguments: str) -> dict[str, Any]:
    done = bench(model, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("suffix", "runtime", "placement"), [("onnx", "onnxruntime", "CPUExecutionProvider"), ("tflite", "tflite", "xnnpack")]
)
def test_the_suffix_chooses_the_runtime(models: Path, suffix: str, runtime: str, placement: str) -> None:
    found = report(models / f"model.{suffix}")
    assert (found["runtime"], found["chosen"], set(found["placement"])) == (runtime, {}, {placement})
    assert found["digest"] == digest_file(models / f"model.{suffix}")
    assert found["latency_ns"]["p50"]["value"] > 0


def test_a_model_of_two_files_is_one_artifact_and_tells_its_precision(models: Path) -> None:
    found = report(models / "model.xml")
    files = [(p.name, digest_file(p), p.stat().st_size) for p in (models / "model.xml", models / "model.bin")]
    assert (found["runtime"], found["digest"]) == ("openvino", artifact_digest(files))
    assert found["chosen"]["inference_precision"] in ("f32", "bf16", "f16")
    assert f"inference_precision={found['chosen']['inference_precision']}" in found["summary"]


@pytest.mark.parametrize("suffix", ["onnx", "tflite"])
def test_openvino_opens_the_formats_of_others(models: Path, suffix: str) -> None:
    found = report(models / f"model.{suffix}", "--runtime", "openvino", "--option", "inference_precision=f32")
    assert (found["runtime"], found["options"]) == ("openvino", {"inference_precision": "f32", "threads": 1})
    assert found["chosen"] == {}


def test_a_delegate_can_be_chosen(models: Path) -> None:
    assert report(models / "model.tflite", "--option", "delegate=none")["placement"] == {"none": 2}


@pytest.mark.parametrize(
    ("suffix", "arguments", "said"),
    [
        ("tflite", ["--runtime", "onnxruntime"], "--runtime onnxruntime: does not open .tflite; tflite and openvino do"),
        ("onnx", ["--runtime", "litert"], "--runtime litert: unknown; known are onnxruntime, openvino, tflite"),
        ("tflite", ["--option", "delegate=gpu"], "option 'delegate' must be one of xnnpack, none, got 'gpu'"),
        ("tflite", ["--option", "thread=2"], "unknown option 'thread' of tflite; known are threads, delegate"),
        ("xml", ["--option", "inference_precision=f8"], "'inference_precision' must be one of f32, bf16, f16, got 'f8'"),
    ],
)
def test_what_a_user_can_do_wrong(models: Path, suffix: str, arguments: list[str], said: str) -> None:
    done = bench(models / f"model.{suffix}", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_weights_that_are_missing_are_told(models: Path, tmp_path: Path) -> None:
    shutil.copy(models / "model.xml", tmp_path)
    done = bench(tmp_path / "model.xml")
    assert done.returncode == 2
    assert "model.xml: load: " in done.stderr
    assert "bin file" in done.stderr


@pytest.mark.parametrize("kept", [8, 100, 1000, 4000])
def test_a_broken_model_takes_nothing_with_it(models: Path, tmp_path: Path, kept: int) -> None:
    broken = tmp_path / "model.tflite"
    broken.write_bytes((models / "model.tflite").read_bytes()[:kept])
    done = bench(broken)
    assert done.returncode == 2
    assert any(f"model.tflite: {kind}: " in done.stderr for kind in ("load", "crash"))  # some releases die of such a file
