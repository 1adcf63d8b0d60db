"""OpenVINO files that are meant to do harm: XML is text, so most of them are edits of a good one. Needs `openvino`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests import zoo_openvino

Build = Callable[[Path], Path]
_DENSE = zoo_openvino.MODELS["dense"]


def _edited(edit: Callable[[str], str]) -> Build:
    def build(folder: Path) -> Path:
        path = _DENSE(folder)
        path.write_text(edit(path.read_text()))
        return path

    return build


def _with_entities(text: str) -> str:
    """Nine levels of ten: a billion names."""
    levels = [f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10)]
    head = "<!DOCTYPE net [" + '<!ENTITY e0 "ha">' + "".join(levels) + "]>"
    return text.replace("<net ", head + "<net ", 1).replace('name="x"', 'name="&e9;"', 1)


def _with_a_file(text: str) -> str:
    head = '<!DOCTYPE net [<!ENTITY secret SYSTEM "file:///etc/passwd">]>'
    return text.replace("<net ", head + "<net ", 1).replace('name="x"', 'name="&secret;"', 1)


def _pipe_for_weights(folder: Path) -> Path:
    path = _DENSE(folder)
    path.with_suffix(".bin").unlink()
    os.mkfifo(path.with_suffix(".bin"))
    return path


def _link_for_weights(folder: Path) -> Path:
    path = _DENSE(folder)
    path.with_suffix(".bin").unlink()
    path.with_suffix(".bin").symlink_to("/dev/zero")
    return path


def _cycle(text: str) -> str:
    first = text.index("<edge ")
    return text[:first] + '<edge from-layer="3" from-port="0" to-layer="3" to-port="0" />' + text[first:]


MODELS: dict[str, Build] = {
    "entity_bomb": _edited(_with_entities),
    "file_entity": _edited(_with_a_file),
    "deep": _edited(lambda text: text.replace("<layers>", "<layers>" + "<layer>" * 100_000, 1)),
    "absurd_shape": _edited(lambda text: text.replace("<dim>16</dim>", f"<dim>{2**62}</dim>")),
    "negative_shape": _edited(lambda text: text.replace("<dim>16</dim>", "<dim>-7</dim>")),
    "absurd_offset": _edited(lambda text: text.replace('offset="0"', f'offset="{2**63}"')),
    "absurd_size": _edited(lambda text: text.replace('size="', 'size="99999999999')),
    "cycle": _edited(_cycle),
    "no_layers": _edited(lambda text: text[: text.index("<layers>")] + "</net>"),
    "pipe_for_weights": _pipe_for_weights,
    "link_for_weights": _link_for_weights,
    "without_weights": zoo_openvino.without_weights,
    "short_weights": zoo_openvino.short_weights,
    "truncated": zoo_openvino.truncated,
}
