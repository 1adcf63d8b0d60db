"""Passes that go wrong in every way that real ones do; loaded by path in the process of a pass."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any, ClassVar, Literal

from edgefarm.model import FailureKind
from optimizer.passes import Changed, PassFailure, PassParameters


class FakeParameters(PassParameters):
    how: Literal[
        "copy", "hang", "signal", "exit", "killed", "raise", "memory", "refuse", "nothing", "garbage", "nan", "rename", "wrong", "print"
    ] = "copy"
    mark: str = ""


class FakePass:
    """Claims to quantise; `how` says what it does instead. Appends a line to the file `mark`."""

    name: ClassVar[str] = "fake"
    version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "optimizer"
    tools: ClassVar[tuple[str, ...]] = ("numpy",)
    parameters: ClassVar[type[PassParameters]] = FakeParameters
    evidence: ClassVar[str] = "structure"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = 0.1

    def run(self, source: Path, out_dir: Path, parameters: FakeParameters, calibration: Any, context: Any) -> Changed:
        if parameters.mark:
            with open(parameters.mark, "a") as stream:
                stream.write(f"{os.getpid()} {parameters.how}\n")
        target = out_dir / "model.onnx"
        how = parameters.how
        if how == "hang":
            threading.Event().wait()
        elif how == "signal":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "exit":
            os._exit(7)
        elif how == "raise":
            raise KeyError("weights of node 3")
        elif how == "memory":
            raise MemoryError
        elif how == "refuse":
            raise PassFailure(FailureKind.UNSUPPORTED_OP, "no kernel for Foo")
        elif how == "garbage":
            target.write_bytes(b"\x3a\xff\xff\xff\x7fgarbage")
        elif how == "copy":
            shutil.copy(source, target)
        elif how != "nothing":
            _edit(source, target, how)
        return Changed(how)


class FakeNormaliser(FakePass):
    """The same, as a courtesy."""

    name: ClassVar[str] = "fake_normaliser"
    must_change: ClassVar[bool] = False


class FakeInteger(FakePass):
    """Changes the graph, but leaves no integer behind."""

    name: ClassVar[str] = "fake_integer"
    evidence: ClassVar[str] = "integer"


def _edit(source: Path, target: Path, how: str) -> None:
    import numpy as np
    import onnx

    model = onnx.load(str(source))
    if how == "rename":
        new = "renamed"
        for node in model.graph.node:
            node.output[:] = [new if o == model.graph.output[0].name else o for o in node.output]
        model.graph.output[0].name = new
    else:
        first = model.graph.initializer[0]
        values = onnx.numpy_helper.to_array(first)
        changed = {"nan": values * np.nan, "wrong": values * -3, "print": values * np.float32(1.001)}[how]
        first.CopyFrom(onnx.numpy_helper.from_array(changed.astype(values.dtype), first.name))
    print("a library that talks on standard output")
    onnx.save(model, str(target))
