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

_CODE = ("Lambda", "__lambda__")
_KNOWN = ("keras", "tf_keras", "builtins")  # modules that a configuration may name
_LAMBDA = "it holds a Lambda layer, which is Python code: use layers of Keras instead"
_DETAIL = 300  # characters of a library's own words
_UNKNOWN = re.compile(r"(?:Could not locate class|Unknown layer:|Unknown object:?) '?(\w+)")


class Unreadable(Exception):
    """A file that cannot be used; the text says why, and what to do."""


def load(path: Path) -> Any:
    """The model, of Keras 3 where that reads it, else of Keras 2. Raises Unreadable."""
    header = _header(path)
    _refuse_code(header.get("config"))
    said = []
    for library in _in_order(str(header.get("keras_version", "3"))):
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


def _in_order(version: str) -> list[Any]:
    """Both libraries, that which wrote the file first."""
    import keras
    import tf_keras

    return [tf_keras, keras] if version.startswith("2") else [keras, tf_keras]


def _header(path: Path) -> dict[str, Any]:
    """`config` and `keras_version`, as far as the file tells them."""
    try:
        if path.suffix.lower() == ".keras" and zipfile.is_zipfile(path):  # so decide the libraries
            with zipfile.ZipFile(path) as archive:
                told = {name: archive.read(f"{name}.json") for name in ("config", "metadata") if f"{name}.json" in archive.namelist()}
            known = {name: json.loads(content) for name, content in told.items()}
            return {"config": known.get("config"), "keras_version": known.get("metadata", {}).get("keras_version", "3")}
        import h5py

        with h5py.File(path, "r") as file:
            config, version = file.attrs.get("model_config", b"null"), file.attrs.get("keras_version", b"3")
        return {"config": json.loads(config), "keras_version": version.decode() if isinstance(version, bytes) else version}
    except (ValueError, OSError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise Unreadable(f"Keras does not read it: {_reason(error)[:_DETAIL]}") from error


def _refuse_code(config: Any) -> None:
    """Raises Unreadable for what would be run, or imported, while a file is read: Keras 2 trusts .h5 files with both."""
    waiting = [config]
    while waiting:
        part = waiting.pop()
        waiting += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        if not isinstance(part, dict):
            continue
        if part.get("class_name") in _CODE:
            raise Unreadable(_LAMBDA)
        module = part.get("module")
        if isinstance(module, str) and "class_name" in part and module.split(".")[0] not in _KNOWN:
            raise Unreadable(_own(str(part["class_name"])))


def _own(name: str) -> str:
    return f"Keras knows no {name}, a class of your own: convert the model where that is defined, and give the .tflite or .onnx file"


def _explained(reason: str) -> str:
    if "`Lambda` layer" in reason:
        return _LAMBDA
    if unknown := _UNKNOWN.search(reason):
        return _own(unknown[1])
    return f"Keras does not read it: {reason[:_DETAIL]}"


def _reason(error: Exception) -> str:
    return " ".join((str(error).strip() or type(error).__name__).split())
