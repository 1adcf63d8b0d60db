"""What only ONNX Runtime does: two ways to learn where nodes ran, and its silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.runtimes import RuntimeFailure
from agent.runtimes import onnxruntime as adapter
from tests import zoo


def test_a_profiled_run_tells_the_same_as_the_recorded_assignment(tmp_path: Path) -> None:
    path = zoo.convolution(tmp_path)
    feeds = {name: values[0] for name, values in zoo.samples(path).items()}
    options = {"threads": 1, "graph_optimization_level": "basic"}  # higher levels fuse nodes for this processor after they are assigned
    recorded = adapter.OnnxRuntime().load(path, options).placement(feeds)
    assert adapter._profiled_placement(path, options, feeds) == recorded == {"CPUExecutionProvider": 7}
    assert list(tmp_path.iterdir()) == [path], "the profile is not left behind"


def test_providers_that_compute_elsewhere_are_not_offered() -> None:
    assert "AzureExecutionProvider" not in adapter.OnnxRuntime().providers()


def test_importing_it_switches_telemetry_off_in_time(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    program = "from agent.runtimes import load_runtime; load_runtime('onnxruntime')"
    subprocess.run([sys.executable, "-c", program], env={**environment, "HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.iterdir()) == []


def test_sequences_and_maps_are_refused_by_name() -> None:
    class FakeNode:
        name, type, shape = "scores", "seq(map(int64,tensor(float)))", ()

    with pytest.raises(RuntimeFailure, match="'scores' is a seq"):
        adapter._spec(FakeNode())
