"""Keras files as models that can be run: `.keras` and `.h5`, written by Keras 3 or by Keras 2 (`tf_keras`).

Nothing that a file may contain is run as Python: layers of the user's own, and lambdas, are refused.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from optimizer.keras.rebuild import rebuilt

_DETAIL = 300  # characters of a library's own words
_UNKNOWN = re.compile(r"(?:Could not locate class|Unknown layer:|Unknown object:?) '?(\w+)")


class Unreadable(Exception):
    """A file that cannot be used; the text says why, and what to do."""


def load(path: Path) -> Any:
    """The model, of Keras 3 where that reads it, else of Keras 2. Raises Unreadable."""
    said = []
    for library in _in_order(path):
        try:
            return library.models.load_model(path, compile=False)
        except Exception as error:  # whatever the library, h5py or zipfile say to a file that they do not take
            said.append(_reason(error))
    raise Unreadable(_explained(said[0]))


def load_legacy(path: Path) -> Any:
    """The model in Keras 2, which the TensorFlow Model Optimization Toolkit works on. Raises Unreadable."""
    import keras

    model = load(path)
    if not isinstance(model, keras.Model):
        return model
    return rebuilt(model)


def _in_order(path: Path) -> list[Any]:
    """Both libraries, that which wrote the file first."""
    import keras
    import tf_keras

    return [tf_keras, keras] if _is_legacy(path) else [keras, tf_keras]


def _is_legacy(path: Path) -> bool:
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                return str(json.loads(archive.read("metadata.json")).get("keras_version", "3")).startswith("2")
        except (KeyError, ValueError, zipfile.BadZipFile):
            return False
    import h5py

    try:
        with h5py.File(path, "r") as file:
            version = file.attrs.get("keras_version", b"3")
    except OSError:
        return False
    return (version.decode() if isinstance(version, bytes) else str(version)).startswith("2")


def _explained(reason: str) -> str:
    if "`Lambda` layer" in reason:
        return "it holds a Lambda layer, which is Python code: use layers of Keras instead"
    if unknown := _UNKNOWN.search(reason):
        return (
            f"Keras knows no {unknown[1]}, a class of your own: convert the model where that is defined, and give the .tflite or .onnx file"
        )
    return f"Keras does not read it: {reason[:_DETAIL]}"


def _reason(error: Exception) -> str:
    return " ".join((str(error).strip() or type(error).__name__).split())
