"""Torch modules as sources: what is exported is the module itself, equal modules are equal bytes, and each mistake is told."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgefarm.errors import StorageError, UserError
from optimizer import torch_source
from optimizer import torch_source_child as child
from optimizer.source import inspect_model, load_source
from optimizer.torch_source import MAIN, Exported, export, locate, names_function

pytest.importorskip("onnxscript")

NET = """
import os
import torch
from torch import nn

import optimizer  # a file of the user's own, not edgefarm's

print("noise")
assert "EDGEFARM_TOKEN" not in os.environ


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, optimizer.CLASSES)
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.25))
        self.drop = nn.Dropout(0.5)

    def forward(self, image):
        y = torch.relu(self.norm(self.conv(image - self.mean)))
        return self.head(self.drop(y.mean((2, 3))))


def build():
    net = Net()
    for p in net.parameters():
        p.requires_grad_(True)
    return net.train(), torch.randn(1, 3, 8, 8)  # SAID
"""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """What the file above becomes."""
    folder = tmp_path_factory.mktemp("net")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEFARM_TOKEN", "secret")
        return export("net.py:build", written(folder), folder / "store")


def written(folder: Path, change: Callable[[str], str] = str) -> Path:
    """A folder with the file above."""
    (folder / "net.py").write_text(change(NET))
    (folder / "optimizer.py").write_text("CLASSES = 5")
    return folder


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_a_module_becomes_an_onnx_file_that_tells_only_of_the_network(first: Exported) -> None:
    exported, store = first, first.path.parents[1]
    assert exported == Exported(exported.path, "net.py:build", "")
    source = load_source(exported.path)
    assert exported.path == store / source.artifact.digest.removeprefix("sha256:")[:16] / MAIN
    assert list(store.iterdir()) == [exported.path.parent]
    assert [(s.name, str(s)) for s in source.signature.inputs] == [("image", "float32[N, 3, 8, 8]")]
    assert [(s.name, str(s)) for s in source.signature.outputs] == [("output", "float32[N, 5]")]
    content = exported.path.read_bytes()
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert not [word for word in (b"net.py", b"pkg.torch", b"stack_trace", os.fsencode(store.parent), b"site-packages") if word in content]
    assert (model.producer_name, model.producer_version, model.doc_string) == ("", "", "")
    rows = np.random.default_rng(1).standard_normal((5, 3, 8, 8), dtype=np.float32)
    together = session(exported.path).run(None, {"image": rows})[0]
    alone = [session(exported.path).run(None, {"image": rows[i : i + 1]})[0][0] for i in range(5)]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_equal_modules_are_equal_bytes(first: Exported, tmp_path: Path) -> None:
    written(tmp_path, lambda text: "# Said otherwise\n\n" + text.replace("SAID", "another comment"))
    (tmp_path / "net.py").rename(tmp_path / "module.py")
    again = export("module.py:build", tmp_path, tmp_path / "store")
    assert again.path.read_bytes() == first.path.read_bytes()
    assert again.path.parent.name == first.path.parent.name


@pytest.mark.parametrize(
    ("code", "limit_s", "told"),
    [
        ("import threading\nthreading.Event().wait()", 1.0, r"net\.py:build: was not exported within 1 s: load trained weights"),
        ("import os\nprint('bye', flush=True)\nos._exit(7)", 100.0, r"its process ended with code 7 and no model\n(.*\n)*bye$"),
    ],
)
def test_a_process_that_gives_no_answer(tmp_path: Path, code: str, limit_s: float, told: str) -> None:
    (tmp_path / "net.py").write_text(code)
    with pytest.raises(UserError, match=told):
        export("net.py:build", tmp_path, tmp_path / "store", limit_s=limit_s)
    assert list((tmp_path / "store").iterdir()) == []


def test_a_missing_library_is_named_with_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(UserError, match=r"net\.py:build: a torch model needs onnxscript: pip install 'edgefarm\[torch\]'"):
        export("net.py:build", tmp_path, tmp_path / "store")


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StorageError, match="store: cannot be written"):
        export("net.py:build", written(tmp_path), tmp_path / "store")


def test_functions_are_told_from_files(tmp_path: Path) -> None:
    assert names_function("sub/net.py:build")
    assert not names_function("model.onnx")
    assert locate("sub/net.py:build", tmp_path) == (tmp_path / "sub/net.py", "build")
    for wrong in ("net.py:", "net.py:1x", "net.py:a:b"):
        with pytest.raises(UserError, match=r"write FILE\.py:FUNCTION"):
            locate(wrong, tmp_path)


# The rest runs the child's own code here: one process that has loaded torch, instead of dozens.


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(child, "_libraries", lambda folder: None)
    known = set(sys.modules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield tmp_path
    for name in ("net", "edgefarm_user_model"):
        if name not in known:
            sys.modules.pop(name, None)


def exported(folder: Path, code: str, name: str = "build") -> dict[str, Any]:
    """The child's reply to a file that holds `code`."""
    (folder / "net.py").write_text("import torch\nfrom torch import nn\n" + code)
    (folder / "request.json").write_text(json.dumps({"file": str(folder / "net.py"), "function": name, "external_above": 1 << 30}))
    child.main(folder)
    reply: dict[str, Any] = json.loads((folder / "reply.json").read_text())
    return reply


def module(forward: str, example: str, init: str = "pass") -> str:
    """A file whose module has these bodies; lines: forward's body is line 8."""
    return (
        f"class Net(nn.Module):\n    def __init__(self):\n        super().__init__(); {init}\n"
        f"    def forward{forward}\n\ndef build():\n    return Net(), {example}\n"
    )


X = "torch.linspace(-1, 1, 6).reshape(2, 3)"
BODIES = {
    "several inputs, several outputs": (
        module("(self, left, right, *, scale=None): return left + right, [left * 2]", f"({X}, {X} + 1)"),
        {"left": "float32[N, 3]", "right": "float32[N, 3]"},
        {"output_0": "float32[N, 3]", "output_1": "float32[N, 3]"},
    ),
    "a dict in and out": (
        module("(self, a, b=None): return {'sum': a + b, 'none': None, 'a': a * b}", f"{{'b': {X}, 'a': {X} * 3}}"),
        {"b": "float32[N, 3]", "a": "float32[N, 3]"},
        {"sum": "float32[N, 3]", "a_output": "float32[N, 3]"},
    ),
    "outputs in outputs": (
        module("(self, x): return {'seen': (x, [x + 1]), 'last': x[:, 0]}", X),
        {"x": "float32[N, 3]"},
        {"seen_0": "float32[N, 3]", "seen_1": "float32[N, 3]", "last": "float32[N]"},
    ),
    "integers": (
        module("(self, tokens): return self.e(tokens).mean(1)", "torch.tensor([[1, 2, 0, 5]])", "self.e = nn.Embedding(7, 3)"),
        {"tokens": "int64[N, 4]"},
        {"output": "float32[N, 3]"},
    ),
    "any number of inputs": (
        module("(self, *parts): return torch.cat(parts, 1)", f"({X}, {X})"),
        {"parts_0": "float32[N, 3]", "parts_1": "float32[N, 3]"},
        {"output": "float32[N, 6]"},
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_names_and_shapes_are_those_of_the_module(here: Path, name: str) -> None:
    code, inputs, outputs = BODIES[name]
    assert exported(here, code) == {"fixed": ""}
    signature = inspect_model(here / MAIN)
    assert {s.name: str(s) for s in signature.inputs} == inputs
    assert {s.name: str(s) for s in signature.outputs} == outputs


FIXED = {
    "a state": (
        module(
            "(self, x, h): return self.g(x, h)", "(torch.ones(1, 5, 3), torch.zeros(2, 1, 4))", "self.g = nn.GRU(3, 4, 2, batch_first=True)"
        ),
        "the inputs have no first axis of one size",
        {"x": "float32[1, 5, 3]", "h": "float32[2, 1, 4]"},
    ),
    "rows that see each other": (
        module("(self, x): return x - x.mean(0)", X),
        "the rows of 'output' are not those of the inputs, each by itself",
        {"x": "float32[2, 3]"},
    ),
    "a module of one size": (
        module("(self, x): return x.reshape(2, 3) * 2", X),
        "the module takes no other number of rows: shape '[2, 3]' is invalid for input of size 3",
        {"x": "float32[2, 3]"},
    ),
    "a branch on the size": (
        module("(self, x): return x * 2 if x.shape[0] < 3 else x * 3", X),
        "the exported file's output 'output' is not the module's own",
        {"x": "float32[2, 3]"},
    ),
    "a loop over the rows": (
        module("(self, x): return torch.stack([x[i] * 2 for i in range(len(x))])", X),
        "torch takes the first axis of 'x' for a constant",
        {"x": "float32[2, 3]"},
    ),
}


@pytest.mark.parametrize("name", FIXED)
def test_sizes_stay_the_examples_where_the_first_axis_is_no_open_batch(here: Path, name: str) -> None:
    code, why, inputs = FIXED[name]
    reply = exported(here, code)
    assert reply.get("fixed", "").startswith(why), reply
    assert {s.name: str(s) for s in inspect_model(here / MAIN).inputs} == inputs


BROKEN = {
    "no such function": ("def biuld():\n    pass\n", "the file has no function 'build'; did you mean 'biuld'?"),
    "no function": ("build = 3\n", "the file is a int, not a function: 'build'"),
    "arguments": ("def build(width):\n    pass\n", "must be callable without arguments: missing a required argument: 'width'"),
    "a file that fails": (
        "import nothing_of_that_name\n",
        "raised ModuleNotFoundError at net.py:3: No module named 'nothing_of_that_name'",
    ),
    "no Python": ("def build(:\n", "raised SyntaxError at net.py:3: invalid syntax"),
    "raises": ("def build():\n    raise ValueError('bad width\\nmore')\n", "the function raised ValueError at net.py:4: bad width"),
    "exits": ("import sys\ndef build():\n    sys.exit('no weights')\n", "the function raised SystemExit at net.py:5: no weights"),
    "a module alone": ("def build():\n    return nn.ReLU()\n", "must return (nn.Module, example inputs), returned a ReLU"),
    "the other way round": (f"def build():\n    return {X}, nn.ReLU()\n", "returned a tuple of (Tensor, ReLU)"),
    "numbers as examples": ("def build():\n    return nn.ReLU(), [1, 2]\n", "a dict of names to tensors, not a list of (int, int)"),
    "no example": ("def build():\n    return nn.ReLU(), ()\n", "a dict of names to tensors, not a tuple of ()"),
    "an empty example": (
        "def build():\n    return nn.ReLU(), torch.ones(0, 3)\n",
        "example input 'input' is a tensor float32[0, 3]: samples are",
    ),
    "an example in bfloat16": (
        "def build():\n    return nn.ReLU(), torch.ones(1).bfloat16()\n",
        "'input' is a tensor bfloat16[1]: samples are",
    ),
    "too many examples": (module("(self, x): return x", f"({X}, {X})"), "2 example inputs for a module whose forward takes 1: x"),
    "too few examples": (module("(self, x, y): return x", X), "forward needs 'y', and the example inputs hold none"),
    "a misspelt example": (
        module("(self, image): return image", f"{{'imag': {X}}}"),
        "'imag' is no parameter of forward; did you mean 'image'?",
    ),
    "forward fails": (module("(self, x): return x @ x", X), "called with its example inputs, raised RuntimeError at net.py:6: "),
    "TorchScript": (
        "def build():\n    return torch.jit.script(nn.ReLU()), torch.ones(1)\n",
        "is TorchScript, which torch can't export; return the",
    ),
    "no tensors": (module("(self, x): return None", X), "the module returns no tensors"),
    "a number": (module("(self, x): return {'y': x, 'k': 3}", X), "the module's output 'k' is a int; only tensors can be exported"),
    "not finite": (module("(self, x): return x / 0", X), "the module's output 'output' is not finite on the example inputs"),
    "an operator that ONNX lacks": (
        module("(self, x): return torch.linalg.eigvals(x @ x.mT).real", "torch.eye(3)[None]"),
        "torch can't export it: No ONNX function found for <OpOverload(op='aten.linalg_eig'",
    ),
    "a branch on values": (
        module("(self, x): return x * 2 if x.sum() > 0 else x", "torch.ones(1, 3)"),
        "torch can't export it: net.py:6: Could not guard on data-dependent expression",
    ),
    "something random": (
        module("(self, x): return nn.functional.dropout(x)", "torch.ones(1, 64)"),
        "the module's outputs differ from call to call: is something random left in it, such as a dropout?",
    ),
    "another network while it is exported": (
        module("(self, x): return x * 3 if torch.compiler.is_compiling() else x * 2", "torch.ones(1, 3)"),
        "the exported file's output 'output' is not the module's own on the example inputs: relative L2 0.5; at most 0.001 is right",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_exported_is_told_with_its_reason(here: Path, name: str) -> None:
    code, told = BROKEN[name]
    reply = exported(here, code)
    assert told in reply.get("error", ""), reply


def test_an_operator_that_is_missing_is_named(here: Path) -> None:
    assert exported(here, BROKEN["an operator that ONNX lacks"][0])["error"].endswith("(operator aten.linalg_eig)")


def test_large_weights_lie_in_a_file_beside_the_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(work: Path, *_: object) -> dict[str, Any]:
        child.main(work)
        reply: dict[str, Any] = json.loads((work / "reply.json").read_text())
        return reply

    monkeypatch.setattr(torch_source, "_run", run)
    (here / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        + module("(self, x): return self.l(x)", X, "torch.manual_seed(1); self.l = nn.Linear(3, 300)")
    )
    found = {above: export("net.py:build", here, here / "store", external_above=above).path for above in (100, 1 << 30)}
    assert inspect_model(found[100]).files == ("model.onnx", "model.onnx.data")
    assert inspect_model(found[1 << 30]).files == ("model.onnx",)
    assert sorted((here / "store").iterdir()) == sorted(path.parent for path in found.values())
    x = np.ones((4, 3), np.float32)
    inside, beside = (session(path).run(None, {"x": x})[0] for path in found.values())
    np.testing.assert_allclose(inside, beside, rtol=1e-6)
    whole = load_source(found[100]).artifact
    found[100].with_name("model.onnx.data").write_bytes(b"cut")  # what a broken disk left is not believed
    assert export("net.py:build", here, here / "store", external_above=100).path == found[100]
    assert load_source(found[100]).artifact == whole
