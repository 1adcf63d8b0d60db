"""The folders below deploy/examples: scripts and fleet files, no packages."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

EXAMPLES = Path(__file__).resolve().parents[1] / "deploy" / "examples"
FASHION, IMAGENET, KERAS, MINILM, MIXED, OCR = (EXAMPLES / name for name in ("fashion", "imagenet", "keras", "minilm", "mixed", "ocr"))


def script(folder: Path, name: str) -> ModuleType:
    """A module of an example."""
    qualified = re.sub(r"\W", "_", f"examples{folder}_{name}")  # a copy of an example is another one
    spec = importlib.util.spec_from_file_location(qualified, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(qualified, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


def fleet_of(folder: Path) -> dict[str, Any]:
    """An example's fleet file, unchecked."""
    fleet: dict[str, Any] = yaml.safe_load((folder / "edge.yaml").read_text())
    return fleet
