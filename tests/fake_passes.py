"""Passes that go wrong in every way that real ones do; loaded by path in the process of a pass."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar, Literal

from edgefarm.model import FailureKind
from optimizer.passes import Changed, PassFailure, PassParameters


class FakeParameters(PassParameters):
    how: Literal[
        "copy",
        "hang",
        "freeze",
        "signal",
        "exit",
        "killed",
        "raise",
        "memory",
        "refuse",
        "nothing",
        "garbage",
        "nan",
        "rename",
        "wrong",
        "print",
        "program",
    ] = "copy"
    mark: str = ""


class FakePass:
    """Claims to quantise; `how` says what it does instead. Appends a line to the file `mark`."""

    name: ClassVar[str] = "fake"
    version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "optimizer"
    toolchain: ClassVar[str] = ""
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
        elif how == "freeze":
            ctypes.PyDLL(None).pause()  # in a library, none of Python's threads runs
        elif how == "program":
            program = subprocess.Popen(["sleep", "600"])
            Path(parameters.mark).write_text(f"{program.pid}")
            shutil.copy(source, target)
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


class FakeWitness(FakePass):
    """Writes what it sees around itself to `mark`, as JSON, and how many threads the sessions get that it and others open."""

    name: ClassVar[str] = "fake_witness"

    def run(self, source: Path, out_dir: Path, parameters: FakeParameters, calibration: Any, context: Any) -> Changed:
        import onnxruntime

        asked = onnxruntime.SessionOptions()
        asked.intra_op_num_threads = 4
        opened = [onnxruntime.InferenceSession(str(source), *options) for options in ((), (onnxruntime.SessionOptions(),), (asked,))]
        seen = {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "session": os.getsid(0),
            "folder": os.getcwd(),
            "hash_seed": (sys.flags.hash_randomization, os.environ["PYTHONHASHSEED"]),
            "oom_score": int(Path("/proc/self/oom_score_adj").read_text()),
            "files": sorted(
                {os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")}
            ),
            "session_threads": [session.get_session_options().intra_op_num_threads for session in opened],
            "library_threads": {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")},
        }
        Path(parameters.mark).write_text(json.dumps(seen))
        print("seen")
        return super().run(source, out_dir, FakeParameters(how="print"), calibration, context)


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
