"""What is wrong in the user's file, model, data or options is said before anything runs: exit 2, by name, with what to do."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests import zoo
from tests.e2e.command import TIMEOUT_S, Done, controller, start
from tests.e2e.zoo_fleets import write_fleet

Document = dict[str, Any]
Spoil = Callable[[Path], None]


def edit(**sections: Any) -> Spoil:
    """Replaces keys of the fleet file; a mapping goes into the section that is there."""

    def spoil(folder: Path) -> None:
        document = json.loads((folder / "edge.yaml").read_text())
        for name, value in sections.items():
            both = isinstance(value, dict) and isinstance(document.get(name), dict)
            document[name] = {**document[name], **value} if both else value
        (folder / "edge.yaml").write_text(json.dumps(document, indent=2))

    return spoil


def recipe(**step: Any) -> Spoil:
    return edit(optimize={"recipes": [{"name": "mine", "passes": [step]}]})


def device(**changes: Any) -> Spoil:
    return edit(devices=[{"name": "bench-1", "local": {"runtimes": ["onnxruntime"], "threads": 1}, **changes}])


def both(first: Spoil, second: Spoil) -> Spoil:
    def spoil(folder: Path) -> None:
        first(folder)
        second(folder)

    return spoil


def arrays(file: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Spoil:
    def spoil(folder: Path) -> None:
        with np.load(folder / file) as found:
            kept = {name: found[name] for name in found.files}
        np.savez(folder / file, **change(kept))

    return spoil


def cut(file: str, share: float) -> Spoil:
    def spoil(folder: Path) -> None:
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: int(len(whole) * share)])

    return spoil


def text(file: str, content: str) -> Spoil:
    return lambda folder: (folder / file).write_text(content) and None


def external(location: str, *, also: Spoil | None = None) -> Spoil:
    """Moves the weights of the model out of it and says that they lie at `location`."""

    def spoil(folder: Path) -> None:
        zoo.external_data(folder)
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location.format(folder=folder)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        if also is not None:
            also(folder)

    return spoil


def lead_out(folder: Path) -> None:
    """`weights.bin` becomes a link to a file beside the folder."""
    outside = folder.parent / "outside.bin"
    shutil.move(folder / "weights.bin", outside)
    (folder / "weights.bin").symlink_to(outside)


def pickled(folder: Path) -> None:
    """An archive whose array runs code when it is unpickled."""

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (folder / "executed",)

    np.savez(folder / "evaluation.npz", x=np.array([Touch()], dtype=object))
    assert pickle.dumps(Touch())


def metric(content: str, name: str = "score") -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "metric.py").write_text(content)
        edit(data={"metric": {"function": f"metric.py:{name}"}})(folder)

    return spoil


def top1_without_targets(folder: Path) -> None:
    arrays("evaluation.npz", lambda a: {"x": a["x"]})(folder)
    edit(data={"metric": "top1"})(folder)


def without(file: str) -> Spoil:
    return lambda folder: (folder / file).unlink()


@dataclass(frozen=True)
class Case:
    """How a good folder is spoiled, and the words that the message must hold."""

    spoil: Spoil
    says: tuple[str, ...]
    code: str = "user"


FLEET = "fleet-file"  # the code of what is wrong in it
FILE, MODEL, EVALUATION = "edge.yaml", "model.onnx", "evaluation.npz"
CASES: dict[str, Case] = {
    # The fleet file.
    "no fleet file": Case(without(FILE), (FILE, "no such file"), FLEET),
    "not YAML": Case(text(FILE, "version: 1\nname: [oops\n"), (f"{FILE}:3", "not valid YAML"), FLEET),
    "not a mapping": Case(text(FILE, "- 1\n"), (FILE, "a fleet file is a mapping"), FLEET),
    "empty": Case(text(FILE, ""), (FILE, "a fleet file is a mapping"), FLEET),
    "a newer version": Case(edit(version=2), (f"{FILE}:2", "version", "1"), FLEET),
    "an unknown key": Case(edit(modle={}), (f"{FILE}:", "unknown key 'modle'", "did you mean 'model'?"), FLEET),
    "an unknown key below": Case(edit(select={"objectiv": "size"}), ("select", "'objectiv'", "'objective'"), FLEET),
    "an unknown key of a device": Case(device(lokal={}), ("devices[0]", "'lokal'", "'local'"), FLEET),
    "a wrong type": Case(device(local={"threads": "two"}), ("devices[0].local.threads", "integer", "'two'"), FLEET),
    "a wrong value": Case(edit(select={"objective": "latency_p51"}), ("select.objective", "latency_p50", "latency_p51"), FLEET),
    "a limit below 0": Case(
        edit(select={"constraints": {"accuracy_drop": -1}}),
        ("select.constraints.accuracy_drop", "greater than or equal to 0"),
        FLEET,
    ),
    "no devices": Case(edit(devices=[]), (f"{FILE}:", "devices", "at least 1"), FLEET),
    "a name twice": Case(
        edit(devices=[{"name": "a", "local": {}}, {"name": "a", "local": {}}]),
        ("devices[1].name", "two devices are named 'a'"),
        FLEET,
    ),
    "not built yet": Case(edit(rollout={"activate": "serve"}), ("rollout.activate", "not available in this version"), "not-available"),
    # The model.
    "no model": Case(without(MODEL), ("model.path", "no such file", MODEL), FLEET),
    "a misspelt model": Case(edit(model={"path": "modle.onnx"}), ("model.path", "did you mean 'model.onnx'?"), FLEET),
    "a Keras model without TensorFlow": Case(
        both(text("model.keras", "PK"), edit(model={"path": "model.keras"})), ("model.path", "controller toolchain install keras"), FLEET
    ),
    "a truncated model": Case(cut(MODEL, 0.5), (MODEL, "not a whole ONNX model", "export or copy it again")),
    "a model that just begins": Case(cut(MODEL, 0.02), (MODEL, "ONNX model", "again")),
    "an empty model": Case(text(MODEL, ""), (MODEL, "ONNX model", "again")),
    "a garbage model": Case(text(MODEL, "PK\x03\x04 this is no model\n" * 50), (MODEL, "not a whole ONNX model")),
    "external data at an absolute path": Case(external("{folder}/weights.bin"), (MODEL, "weights.bin", "inside of the model's folder")),
    "external data above": Case(external("../weights.bin"), (MODEL, "../weights.bin", "inside of the model's folder")),
    "external data behind a link": Case(external("weights.bin", also=lead_out), (MODEL, "weights.bin", "by a link")),
    "external data missing": Case(external("weights.bin", also=without("weights.bin")), (MODEL, "'weights.bin'", "no such file")),
    "external data cut short": Case(external("weights.bin", also=cut("weights.bin", 0.5)), (MODEL, "'weights.bin'", "cut short")),
    # The data.
    "no evaluation set": Case(without(EVALUATION), ("data.evaluation", "no such file"), FLEET),
    "a wrong input name": Case(arrays(EVALUATION, lambda a: {"xs": a["x"], "y": a["y"]}), (EVALUATION, "'x'", "is 'xs' meant?")),
    "a wrong shape": Case(arrays(EVALUATION, lambda a: {**a, "x": a["x"][:, :5]}), (EVALUATION, "'x'", "[24, 5]", "[N, 16]")),
    "a wrong rank": Case(arrays(EVALUATION, lambda a: {**a, "x": a["x"].reshape(-1)}), (EVALUATION, "'x'", "[384]", "[N, 16]")),
    "a wrong dtype": Case(arrays(EVALUATION, lambda a: {**a, "x": a["x"].astype("f8")}), (EVALUATION, "float64", ".astype('float32')")),
    "samples with NaN": Case(arrays(EVALUATION, lambda a: {**a, "x": a["x"] * np.float32(np.nan)}), (EVALUATION, "'x'", "NaN")),
    "no samples": Case(arrays(EVALUATION, lambda a: {"x": a["x"][:0], "y": a["y"][:0]}), (EVALUATION, "no samples")),
    "targets that are too few": Case(arrays(EVALUATION, lambda a: {**a, "y": a["y"][:3]}), (EVALUATION, "'y'", "3 rows", "24")),
    "a wrong calibration set": Case(arrays("calibration.npz", lambda a: {"z": a["x"]}), ("calibration.npz", "'x'", "'z'")),
    "a pickled set": Case(pickled, (EVALUATION, "pickled", "save plain arrays")),
    "a truncated set": Case(cut(EVALUATION, 0.7), (EVALUATION, "not a whole .npz file", "again")),
    "a set that is no archive": Case(text(EVALUATION, "hello"), (EVALUATION, ".npz")),
    # Recipes.
    "an unknown pass": Case(recipe(**{"pass": "quantize_statik"}), (f"{FILE}:", "recipes[0].passes[0]", "'quantize_static'"), FLEET),
    "an unknown parameter": Case(
        recipe(**{"pass": "quantize_dynamic", "per_chanel": True}), (f"{FILE}:", "recipes[0].passes[0]", "'per_channel'"), "fleet-file"
    ),
    "a parameter's wrong value": Case(
        recipe(**{"pass": "quantize_static", "calibration": "minmaks"}),
        (f"{FILE}:", "recipes[0].passes[0].calibration", "'minmax'"),
        FLEET,
    ),
    "an unknown key of a recipe": Case(edit(optimize={"recipes": [{"name": "m", "pases": []}]}), ("recipes[0]", "'passes'"), FLEET),
    "a recipe for later": Case(edit(optimize={"recipes": "best"}), ("optimize.recipes", "'auto'", "'best'"), FLEET),
    "a pass without its samples": Case(
        both(edit(data={"calibration": None}), recipe(**{"pass": "quantize_static"})),
        ("recipes[0].passes[0]", "data.calibration"),
        FLEET,
    ),
    # The metric.
    "an unknown metric": Case(edit(data={"metric": "top2"}), ("data.metric", "top1", "'top2'"), FLEET),
    "no metric file": Case(
        edit(data={"metric": {"function": "metric.py:score"}}), ("data.metric", "no such file", "metric.py"), "fleet-file"
    ),
    "no metric function": Case(metric("def scores(outputs, targets): return 1.0\n"), ("metric.py:score", "no function 'score'")),
    "a metric that does not load": Case(metric("import no_such_module\n"), ("metric.py:score", "No module named 'no_such_module'")),
    "a metric that is no Python": Case(metric("def score(:\n"), ("metric.py:score", "SyntaxError")),
    "top1 without targets": Case(top1_without_targets, (EVALUATION, "no targets", "metric: agreement")),
    "labels that are no classes": Case(edit(data={"metric": "top1"}), ("top1", "'y'", "class labels must be integers")),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    write_fleet(folder, zoo.dense(folder))
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Iterator[Path]:
    target = tmp_path / "work"
    shutil.copytree(good, target)
    yield target
    assert not (target / "executed").exists(), "code of the user's data was run"


def assert_refused(done: Done, code: str, says: tuple[str, ...], exit_code: int = 2) -> None:
    """One JSON document with the error on stdout, the same message on stderr, no traceback of ours."""
    assert done.code == exit_code, f"exit code {done.code}\n{done.stderr[-3000:]}"
    error = done.document["error"]
    assert done.document == {"error": {"code": code, "message": error["message"]}, "exit_code": exit_code}
    assert f"error: {error['message']}\n" in done.stderr
    for words in says:
        assert words in error["message"], error["message"]
    assert 'File "' not in done.stderr.replace("metric.py", "").split("error:")[0]
    assert "controller/" not in done.stderr
    assert "optimizer/" not in done.stderr


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_before_anything_runs(folder: Path, name: str) -> None:
    case = CASES[name]
    case.spoil(folder)
    done = controller("deploy", "--fleet", FILE, "--json", cwd=folder)
    assert_refused(done, case.code, case.says)
    assert not (folder / ".edgefarm").exists(), "something was begun"


OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a phase that is none": (("--until", "tomorrow"), ("--until tomorrow", "optimize, measure, select, rollout")),
    "no percentage": (("--allow-unreachable", "many"), ("--allow-unreachable many", "10%")),
    "more than all": (("--allow-unreachable", "101%"), ("--allow-unreachable 101%", "10%")),
    "events into a folder": (("--events", "."), ("--events .", "directory")),
    "a report where a file is": (("--report", MODEL), (f"--report {MODEL}", "folder")),
    "a controller for local devices": (("--controller", "farm:7443"), ("together with the controller farm:7443", "leave out one")),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_bad_options_are_refused_before_anything_runs(folder: Path, name: str) -> None:
    options, says = OPTIONS[name]
    done = controller("deploy", "--fleet", FILE, "--json", *options, cwd=folder)
    assert_refused(done, "fleet-file" if "--controller" in options else "user", says)
    assert not (folder / ".edgefarm").exists(), "something was begun"


def test_without_json_nothing_is_on_stdout(folder: Path) -> None:
    edit(modle={})(folder)
    for verb in (("deploy",), ("deploy", "--dry-run"), ("rollback",), ("devices",)):
        done = controller(*verb, "--fleet", FILE, cwd=folder)
        assert (done.code, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {folder}/{FILE}:")
    misspelt = controller("deploy", "--flet", FILE, cwd=folder)
    assert (misspelt.code, misspelt.stdout) == (2, "")
    assert "--fleet" in misspelt.stderr


def test_a_forked_command_does_what_a_started_one_does(folder: Path) -> None:
    edit(modle={})(folder)
    for options in (("--json",), ("--flet",)):
        arguments = ("deploy", "--fleet", FILE, *options)
        started = start(arguments, folder)
        stdout, stderr = started.communicate(timeout=TIMEOUT_S)
        assert controller(*arguments, cwd=folder) == Done(started.returncode, stdout, stderr)


def test_looking_where_nothing_is(folder: Path) -> None:
    for verb in (("devices",), ("runs",), ("show", "zoo@1"), ("report", "zoo@1")):
        done = controller(*verb, "--fleet", FILE, "--json", cwd=folder)
        assert_refused(done, "user", (str(folder / ".edgefarm" / "zoo"), "controller deploy"))
        assert not (folder / ".edgefarm").exists()
