"""Loads a fleet file and resolves what it names: the model, the data, the devices."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from controller.config import enrolled, lines
from controller.config.availability import refuse_what_is_not_built
from controller.config.measure import check_measure
from controller.config.schema import Constraints, DeviceEntry, FleetFile, MetricFunction
from edgefarm.digest import canonical_json, digest_file
from edgefarm.errors import UserError
from edgefarm.model import Device, DeviceStatus
from optimizer.exported import Exported
from optimizer.keras_source import LITE, is_keras
from optimizer.keras_source import SUFFIXES as KERAS
from optimizer.source import FORMATS, Format, inspect_model
from optimizer.torch_source import locate, names_function


@dataclass(frozen=True)
class Target:
    """One device, with what the file says for all devices and for it resolved.

    `formats`: of artifacts that may be activated on it; empty = whatever its runtimes open.
    """

    name: str
    runtimes: tuple[str, ...]
    threads: int
    options_threads: tuple[int, ...]
    labels: dict[str, str]
    objective: str
    constraints: Constraints
    formats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fleet:
    """A checked fleet file; every path is absolute and exists.

    `enlisted`: enrolled devices with the indices of their entries, once a controller has told of them.
    `exported`: what a torch or Keras source became (`controller.sources`); only then are there `model` and `spec`.
    """

    path: Path
    file: FleetFile
    document: lines.Document
    enlisted: tuple[tuple[int, Device], ...] = ()
    exported: Exported | None = None

    @property
    def controller(self) -> str | None:
        """Address of the running controller; None: the command hosts one."""
        return self.file.controller

    @property
    def name(self) -> str:
        """Name of the campaign."""
        return self.file.name

    @property
    def model_name(self) -> str:
        """Name of the model, by default the campaign's."""
        return self.file.model.name or self.file.name

    @property
    def is_torch(self) -> bool:
        """Whether a function gives the source, `net.py:build`."""
        return names_function(self.file.model.path)

    @property
    def is_exported(self) -> bool:
        """Whether the source must be exported first."""
        return self.is_torch or is_keras(self.file.model.path)

    @property
    def model(self) -> Path:
        """The source model's file."""
        if not self.is_exported:
            return self.path.parent / self.file.model.path
        assert self.exported is not None  # `controller.sources.ready`
        return self.exported.path

    @property
    def alternatives(self) -> tuple[Path, ...]:
        """The same network in other formats: the user's, then what the source was exported to besides."""
        given = tuple(self.path.parent / a for a in self.file.model.alternatives)
        return given + (self.exported.others if self.exported else ())

    @cached_property
    def data(self) -> dict[str, Path]:
        """`calibration`, `evaluation`, `selection`, `train`, as far as given."""
        named = {n: getattr(self.file.data, n) for n in ("calibration", "evaluation", "selection", "train")}
        return {n: self.path.parent / p for n, p in named.items() if p is not None}

    @property
    def metric_file(self) -> tuple[Path, str] | None:
        """File and function of the user's own metric."""
        metric = self.file.data.metric
        if not isinstance(metric, MetricFunction):
            return None
        file, _, function = metric.function.rpartition(":")
        return self.path.parent / file, function

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The devices, in the file's order; enrolled ones only after `enlist`."""
        if self.controller is None:
            return tuple(self._local(index, entry) for index, entry in enumerate(self.file.devices))
        return tuple(
            self._target(index, self.file.devices[index], d.name, enrolled.runtimes(d), d.threads, dict(d.labels))
            for index, d in self.enlisted
        )

    def enlist(self, known: Sequence[DeviceStatus]) -> Fleet:
        """With the enrolled devices that the entries mean. Raises FleetFileError where too few match."""
        return replace(self, enlisted=enrolled.enlist(self.file, self.document, known))

    def state(self, override: Path | None) -> Path:
        """The state folder: `.edgefarm/<name>/` beside the file unless overridden."""
        return (override or self.path.parent / ".edgefarm" / self.name).absolute()

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Everything that makes a run another run: the file's content and the digests of what it names.

        `labels` are kept with a run but do not make a new one.
        """
        content = self.file.model_dump(mode="json", exclude={"labels"})
        content["controller"] = None  # a run is where it is
        if not self.file.measure.fails_on_fallback:
            del content["measure"]["on_fallback"]  # a key that runs of earlier versions did not have
        files = {"model": digest_file(self.model), **{n: digest_file(p) for n, p in self.data.items()}}
        for name in inspect_model(self.model).files[1:]:
            files[f"model/{name}"] = digest_file(self.model.parent / name)
        for index, path in enumerate(self.alternatives):
            for name in inspect_model(path).files:
                files[f"alternatives/{index}/{name}"] = digest_file(path.parent / name)
        if self.metric_file:
            files["metric"] = digest_file(self.metric_file[0])
        if self.exported and self.exported.original:
            files["original"] = digest_file(self.exported.original)
        made = {"exported": {"from": self.exported.origin, "fixed": bool(self.exported.fixed)}} if self.exported else {}
        return {"file": content, "digests": files, **made}

    @cached_property
    def spec_digest(self) -> str:
        """Digest of `spec`."""
        return "sha256:" + hashlib.sha256(canonical_json(self.spec)).hexdigest()

    def _local(self, index: int, entry: DeviceEntry) -> Target:
        local = entry.local
        assert local is not None  # `enrolled.check_entries`
        name = entry.name or f"local-{index + 1}"
        runtimes = local.runtimes or [_format(Path(self.file.model.path)).runtime]
        return self._target(index, entry, name, runtimes, local.threads, dict(entry.labels))

    def _target(self, index: int, entry: DeviceEntry, name: str, able: Sequence[str], limit: int, labels: dict[str, str]) -> Target:
        """A device that has the runtimes `able` and may use up to `limit` threads."""
        select = self.file.select
        for position, threads in enumerate(entry.threads or ()):
            if threads > limit:
                whose = "'local.threads'" if entry.local else f"of {name!r}"
                message = f"{threads} is more than the device's own limit {whose}, which is {limit}"
                raise self.document.error(message, ("devices", index, "threads", position))
        chosen = entry.threads or ([limit] if self.file.measure.threads == "auto" else self.file.measure.threads)
        allowed = tuple(dict.fromkeys(t for t in chosen if t <= limit)) or (limit,)
        given = entry.constraints.model_dump(exclude_none=True) if entry.constraints else {}
        merged = {**select.constraints.model_dump(exclude_none=True), **given}
        runtimes = [r for r in able if entry.runtimes is None or r in entry.runtimes]
        if not runtimes:
            whose = "'local.runtimes'" if entry.local else f"those of {name!r}: {', '.join(able) or 'it has proved none'}"
            raise self.document.error(f"no runtime is left: 'runtimes' names none of {whose}", ("devices", index, "runtimes"))
        objective = entry.objective or select.objective
        formats = () if self._names_runtimes(entry) else (_format(Path(self.file.model.path)).name,)
        return Target(name, tuple(runtimes), limit, allowed, labels, objective, Constraints(**merged), formats)

    def _names_runtimes(self, entry: DeviceEntry) -> bool:
        """Whether any format is welcome: programs that load the activated file expect the source's, unless the file says otherwise."""
        named = entry.runtimes is not None or (entry.local is not None and entry.local.runtimes is not None)
        return named or self.file.rollout.activate != "file"


def load_fleet(path: Path, controller: str | None = None) -> Fleet:
    """Reads and checks a fleet file, with another controller than it names if one is given.

    Raises FleetFileError with file, line, field and the nearest valid name.
    """
    document = lines.read(path.absolute())
    if not isinstance(document.content, dict):
        raise document.error("a fleet file is a mapping: see the example in the README")
    try:
        file = FleetFile.model_validate(document.content)
    except ValidationError as error:
        raise _first_error(error, document) from None
    if controller is not None:
        file = file.model_copy(update={"controller": controller})
    fleet = Fleet(document.path, file, document)
    refuse_what_is_not_built(file, document)
    check_measure(file, document)
    enrolled.check_entries(file, document)
    _check_names(fleet)
    _check_files(fleet)
    return fleet


def _check_names(fleet: Fleet) -> None:
    seen: set[str] = set()
    local = fleet.controller is None
    for index, name in enumerate([t.name for t in fleet.targets] if local else [e.name for e in fleet.file.devices]):
        if name is not None and name in seen:
            raise fleet.document.error(f"two devices are named '{name}'", ("devices", index, "name"))
        seen.add(name or "")


def _check_files(fleet: Fleet) -> None:
    named: list[tuple[lines.Key, Path]] = [(("model", "path"), _model_file(fleet))]
    named += [(("model", "alternatives", index), path) for index, path in enumerate(fleet.alternatives)]
    named += [(("data", name), path) for name, path in fleet.data.items()]
    if fleet.metric_file:
        named.append((("data", "metric"), fleet.metric_file[0]))
    for key, path in named:
        if not path.is_file():
            near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else [], 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise fleet.document.error(f"no such file: {path}{hint}", key)
    taken: dict[str, str] = {}
    for key, path in [named[0], *named[1 : 1 + len(fleet.alternatives)]]:
        exported = fleet.is_exported and key == named[0][0]
        if path.suffix.lower() not in FORMATS and not exported:
            known = ", ".join([*FORMATS, *(KERAS if key == named[0][0] else ())])
            hint = f"; torch's are named with a function: {path.name}:FUNCTION" if path.suffix == ".py" else ""
            raise fleet.document.error(f"'{path.name}' has no format that is known; a model ends in one of {known}{hint}", key)
        title = _format(path).title
        if other := taken.get(title):
            raise fleet.document.error(f"'{path.name}' is {title}, as '{other}' is; an alternative is the network in another format", key)
        taken[title] = fleet.file.model.path if exported else path.name
        if exported and not fleet.is_torch:  # it becomes both
            taken = {f.title: fleet.file.model.path for f in (FORMATS[".onnx"], FORMATS[".tflite"])}


def _model_file(fleet: Fleet) -> Path:
    """The file that must be there: the model, or the one that gives it. Raises FleetFileError."""
    if not fleet.is_torch:
        return fleet.path.parent / fleet.file.model.path
    try:
        return locate(fleet.file.model.path, fleet.path.parent)[0]
    except UserError as error:
        raise fleet.document.error(str(error), ("model", "path")) from None


def _format(path: Path) -> Format:
    """By the suffix; of an exported source what its users expect; of one that is not known, and refused elsewhere, the first."""
    suffix = Path(LITE).suffix if is_keras(path.name) else path.suffix.lower()
    return FORMATS.get(suffix, FORMATS[".onnx"])


def _first_error(error: ValidationError, document: lines.Document) -> UserError:
    # A union reports one error per member: the deepest is the one that the user meant.
    problem = max(error.errors(), key=lambda e: (e["type"] == "extra_forbidden", len(e["loc"])))
    key = tuple(part for part in problem["loc"] if _in_document(document, problem["loc"], part))
    if problem["type"] == "extra_forbidden":
        name = str(problem["loc"][-1])
        valid = _valid_names(tuple(problem["loc"][:-1]))
        near = difflib.get_close_matches(name, valid, 1, 0.5)
        hint = f"; did you mean '{near[0]}'?" if near else f"; valid: {', '.join(valid)}" if valid else ""
        return document.error(f"unknown key '{name}'{hint}", key)
    if problem["type"] == "missing":
        return document.error("is missing", key)
    return document.error(f"{problem['msg']}, got {problem['input']!r}", key)


def _in_document(document: lines.Document, location: tuple[str | int, ...], part: str | int) -> bool:
    """Pydantic puts the names of union members into a location; they are no keys of the file."""
    return isinstance(part, int) or any(part in known for known in document.lines) or part == location[-1]


def _valid_names(location: tuple[str | int, ...]) -> list[str]:
    section: type[BaseModel] | None = FleetFile
    for part in location:
        if isinstance(part, int) or section is None:
            continue
        known = section.model_fields.get(part)
        section = _section_of(known.annotation if known else part)
    return sorted(section.model_fields) if section else []


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if annotation == "MetricFunction":
        return MetricFunction
    for argument in getattr(annotation, "__args__", ()):
        if found := _section_of(argument):
            return found
    return None
