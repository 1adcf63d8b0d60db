"""Entries of a fleet file and the devices that are enrolled at its controller: which ones they mean, and what those can do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from controller.config.lines import Document, Key
from controller.config.schema import DeviceEntry, FleetFile
from edgefarm.model import Device, DeviceStatus

Selector = Mapping[str, str | Sequence[str]]  # label -> its value, or the values that it may have
_LATER = ("lost", "draining", "needs_upgrade")  # devices that are taken only where no others match
_EMULATED = "emulated"  # a label that emulated devices give themselves


def matches(selector: Selector, labels: Mapping[str, str]) -> bool:
    """Whether labels have all values that a selector asks for."""
    return all(labels.get(key) in ([value] if isinstance(value, str) else value) for key, value in selector.items())


def told(selector: Selector) -> str:
    """A selector as people write it: `board=pi-4|pi-5, room=lab`."""
    return ", ".join(f"{key}={value if isinstance(value, str) else '|'.join(value)}" for key, value in selector.items())


def runtimes(device: Device) -> tuple[str, ...]:
    """The runtimes that a device has proved."""
    return tuple(dict.fromkeys(c.runtime for c in device.capabilities if c.available))


def check_entries(file: FleetFile, document: Document) -> None:
    """Holds entries against where the controller is: hosted by the command, or running somewhere. Raises FleetFileError."""
    for index, entry in enumerate(file.devices):
        key: Key = ("devices", index)
        if entry.count is not None and entry.selector is None:
            raise document.error("counts the devices that match a 'selector', and there is none", (*key, "count"))
        if file.controller is None:
            if entry.local is None or entry.selector is not None:
                message = "an enrolled device needs 'controller:', the address of a running 'controller serve'; or give it 'local:'"
                raise document.error(message, (*key, "selector") if entry.selector is not None else key)
        elif entry.local is not None:
            message = f"a device that the command starts itself, together with the controller {file.controller}: leave out one of the two"
            raise document.error(message, (*key, "local"))
        elif (entry.name is None) == (entry.selector is None):
            raise document.error("an enrolled device is given by its 'name', or several by a 'selector'", key)
        elif entry.labels:
            raise document.error("labels of an enrolled device are set by 'controller device label'", (*key, "labels"))


def enlist(file: FleetFile, document: Document, known: Sequence[DeviceStatus]) -> tuple[tuple[int, Device], ...]:
    """The devices that the entries mean, with the index of the entry; none is meant twice.

    A `count` takes devices that are there before others, then by name. Raises FleetFileError where too few match.
    """
    chosen: list[tuple[int, Device]] = []
    taken = {entry.name for entry in file.devices}
    for index, entry in enumerate(file.devices):
        found = _meant(entry, known, taken)
        wanted = entry.count or 1
        if len(found) < wanted:
            raise document.error(_too_few(entry, found, known, file.controller or ""), ("devices", index))
        found = found[: entry.count or len(found)]
        taken |= {d.name for d in found}
        chosen += [(index, d) for d in found]
    return tuple(chosen)


def _meant(entry: DeviceEntry, known: Sequence[DeviceStatus], taken: set[str | None]) -> list[Device]:
    if entry.selector is None:
        return [s.device for s in known if s.device.name == entry.name]
    fitting = [s for s in known if matches(entry.selector, s.device.labels) and _is_asked_for(entry, s.device)]
    matching = [s for s in fitting if s.device.name not in taken]
    return [s.device for s in sorted(matching, key=lambda s: (s.state in _LATER, s.device.name))]


def _is_asked_for(entry: DeviceEntry, device: Device) -> bool:
    """An emulated device stands in for no real one: it is meant by its name, or by a selector that speaks of emulation."""
    return not device.emulated or entry.selector is None or _EMULATED in entry.selector


def _too_few(entry: DeviceEntry, found: Sequence[Device], known: Sequence[DeviceStatus], controller: str) -> str:
    names = [s.device.name for s in known]
    if entry.selector is None:
        near = difflib.get_close_matches(entry.name or "", names, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names) or 'none'}"
        return f"no device '{entry.name}' is enrolled at {controller}; {hint}. One that has just enrolled is known once its agent runs"
    asked = told(entry.selector)
    matching = ", ".join(d.name for d in found) or "none"
    left_out = [s.device.name for s in known if matches(entry.selector, s.device.labels) and not _is_asked_for(entry, s.device)]
    hint = f"; emulated, so taken only with '{_EMULATED}: yes' in the selector: {', '.join(left_out)}" if left_out else ""
    return f"{entry.count or 1} devices with {asked} are wanted; enrolled at {controller}, and meant by no other: {matching}{hint}"
