"""`controller deploy` with `recipes: auto` beside what other tools make of the same model, on one device, measured in the same launches.

Each campaign is deployed (`--until select`); its winner and the peers' files (`peers.py`, in an environment of its own) are then measured
by `controller bench`: interleaved with the source, accuracy on the device with the evaluation set. A peer counts if it keeps the
campaign's accuracy limit. Progress on stderr; the last line on stdout is one JSON object.

python -m tests.benchmarks.optimizer [FLEET...] [--peers PYTHON]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "deploy/examples"
DEFAULT = [EXAMPLES / "pruned/edge.yaml", EXAMPLES / "imagenet/edge.yaml", EXAMPLES / "ocr/edge.yaml"]


def controller(*arguments: str, allowed: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """A command's JSON document. Ends the benchmark where the command fails."""
    done = subprocess.run([sys.executable, "-m", "controller.cli", *arguments, "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in allowed:
        raise SystemExit(f"controller {' '.join(arguments)}: exit code {done.returncode}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def measure(fleet: Path, peers: Path) -> dict[str, Any]:
    """One campaign: its winner against the peers."""
    report = controller("deploy", "--fleet", str(fleet), "--until", "select", allowed=(0, 8))
    device = report["devices"][0]
    winner = device["winner"]
    if winner is None:
        raise SystemExit(f"{fleet}: no winner: {device['reason']}")
    file = next(v["file"] for v in report["variants"] if v["artifact"] == winner["artifact"]["digest"])
    spec = yaml.safe_load(fleet.read_text())
    source, calibration = (fleet.parent / spec["model"]["path"], fleet.parent / spec["data"]["calibration"])
    with tempfile.TemporaryDirectory() as folder:
        script = Path(__file__).with_name("peers.py")
        made = subprocess.run(
            [str(peers), str(script), str(source), str(calibration), folder], stdout=subprocess.PIPE, text=True, check=True
        )
        told = json.loads(made.stdout.strip().splitlines()[-1])
        files = {name: Path(folder) / name / "model.onnx" for name, said in told.items() if "failed" not in said}
        numbers, failed = bench(fleet, {"winner": Path(file), **files}, Path(folder), device["name"])
    told.update({name: {"failed": why} for name, why in failed.items()})
    return summary(report["model"]["name"], winner, numbers, told, spec["select"]["constraints"])


def bench(fleet: Path, files: dict[str, Path], folder: Path, device: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Candidates by name, and why others gave nothing."""
    named = {}
    for name, file in files.items():
        named[name] = folder / f"{name}{file.suffix}"
        if named[name] != file:
            named[name].write_bytes(file.read_bytes())
    arguments = [part for path in named.values() for part in ("--variant", str(path))]
    report = controller("bench", "--fleet", str(fleet), *arguments, allowed=(0, 3, 8))
    (measured,) = [d for d in report["devices"] if d["name"] == device]
    by_name = {Path(c["variant"]).stem: c for c in measured["candidates"]}
    failed = {f["variant"].split(".")[0]: f["detail"] for f in measured["failures"]}
    return {name: c for name, c in by_name.items() if c["speedup_vs_baseline"] and name not in failed}, failed


def summary(name: str, winner: dict[str, Any], numbers: dict[str, Any], told: dict[str, Any], limits: dict[str, float]) -> dict[str, Any]:
    """Ratios of this run. A peer that breaks the limit is shown, and not compared with."""
    shown = {}
    for peer, candidate in numbers.items():
        accuracy, speed = candidate["accuracy"], candidate["speedup_vs_baseline"]
        drop = None if accuracy is None else accuracy["baseline"] - accuracy["value"]
        shown[peer] = {
            "speedup_vs_float": speed["ratio"],
            "ci95": speed["ci95"],
            "accuracy": None if accuracy is None else accuracy["value"],
            "drop": drop,
            "bytes": candidate["artifact"]["bytes"],
            "keeps_limit": drop is None or drop <= limits.get("accuracy_drop", math.inf) + 1e-9,
        }
    ours = shown.pop("winner")
    rivals = {peer: s for peer, s in shown.items() if s["keeps_limit"]}
    best = max(rivals, key=lambda p: rivals[p]["speedup_vs_float"], default=None)
    rival = rivals[best]["speedup_vs_float"] if best else 1.0
    return {
        "name": name,
        "winner": winner["variant"],
        "accuracy": ours["accuracy"],
        "n": numbers["winner"]["accuracy"]["n"],
        "speedup_vs_float": ours["speedup_vs_float"],
        "ci95": ours["ci95"],
        "bytes": ours["bytes"],
        "ratio_to_best_peer": ours["speedup_vs_float"] / max(rival, 1.0),  # whoever's peer is slower than float keeps the float model
        "best_peer": best or "float",
        "peers": {**shown, **{peer: said for peer, said in told.items() if "failed" in said}},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fleets", nargs="*", type=Path, default=DEFAULT, help="fleet files of campaigns with an .onnx model")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers/bin/python", help="interpreter that has the other tools")
    options = parser.parse_args()
    if not options.peers.is_file():
        raise SystemExit(f"{options.peers}: no such file; `make bench-optimizer` installs the other tools there")
    models = [measure(fleet.absolute(), options.peers.absolute()) for fleet in options.fleets]
    document = {
        "models": models,
        "geomean_vs_best_peer": math.exp(sum(math.log(m["ratio_to_best_peer"]) for m in models) / len(models)),
        "n": len(models),
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}",
        "command": " ".join(["python -m tests.benchmarks.optimizer", *(a for a in sys.argv[1:] if not a.startswith("/"))]),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
