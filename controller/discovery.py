"""Which devices Prometheus scrapes itself, in the form of its HTTP service discovery.

A device is scraped directly if it has announced a metrics address and its operator has labelled it `metrics: direct` (what a device
says of itself could send Prometheus anywhere); of all others the controller relays what they tell. Source of the form: https://prometheus.io/docs/prometheus/latest/http_sd/.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from edgefarm.model import Device, DeviceStatus

LABEL, DIRECT = "metrics", "direct"


def is_attached(status: DeviceStatus) -> bool:
    """Whether the device has a session now."""
    return status.state != "lost"


def is_direct(device: Device, labels: Mapping[str, str]) -> bool:
    """Whether a device with these labels is scraped by Prometheus itself rather than relayed."""
    return labels.get(LABEL) == DIRECT and _target(device) is not None


def targets(statuses: Iterable[DeviceStatus], labels_of: Callable[[Device], Mapping[str, str]]) -> bytes:
    """The direct devices that are attached, as JSON; the label `device` is the name that the controller knows."""
    groups = []
    for status in statuses:
        target = _target(status.device)
        if target is not None and is_attached(status) and is_direct(status.device, labels_of(status.device)):
            scheme, place, path = target
            labels = {"device": status.device.name, "__scheme__": scheme, "__metrics_path__": path}
            groups.append({"targets": [place], "labels": labels})
    return json.dumps(groups, indent=1).encode()


def _target(device: Device) -> tuple[str, str, str] | None:
    """(scheme, HOST:PORT, path) of the address that a device announced; None if that is none."""
    try:
        found = urlsplit(device.metrics_address)
        port = found.port
    except ValueError:
        return None
    if found.scheme not in ("http", "https") or not found.hostname or port is None or found.username is not None:
        return None
    host = f"[{found.hostname}]" if ":" in found.hostname else found.hostname
    return found.scheme, f"{host}:{port}", found.path or "/"
