"""Devices and what they are told to run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from edgefarm.digest import canonical_json
from edgefarm.model.candidates import Candidate, Options


@dataclass(frozen=True)
class Capability:
    """A (runtime, provider or delegate, version) that the device proved it can load, or the reason why it cannot.

    `formats`: formats of artifacts that the runtime takes; `options`: the options that select this provider.
    """

    runtime: str
    provider: str
    version: str
    available: bool
    reason: str = ""
    formats: tuple[str, ...] = ()
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Device:
    """One board with a stable `id`; `host` is the kernel's boot id: devices of one host take turns to measure."""

    name: str
    id: str
    host: str
    labels: Mapping[str, str] = field(default_factory=dict)
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    capabilities: tuple[Capability, ...] = ()
    threads: int = 1
    emulated: bool = False
    agent_version: str = ""
    metrics_address: str = ""

    @property
    def device_class(self) -> str:
        """12 hex digits that devices with an equal fingerprint share."""
        return hashlib.sha256(canonical_json(dict(self.fingerprint))).hexdigest()[:12]


@dataclass(frozen=True)
class DeviceStatus:
    """A device as the controller sees it.

    `state`: ready, probing, busy, draining, paused, lost or needs_upgrade; seen from outside of a hosted controller: in_use or off.
    """

    device: Device
    device_class: str
    state: str
    last_seen_unix_ms: int = 0
    reason: str = ""


class DeploymentState(str, Enum):
    """Life of one deployment on one device."""

    UNSPECIFIED = "unspecified"
    ORDERED = "ordered"
    STAGED = "staged"
    COMMITTED = "committed"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    SUPERSEDED = "superseded"


@dataclass(frozen=True)
class Golden:
    """Golden inputs and outputs (digest of a tensor pack); an output is right if |got - want| <= absolute + relative * max|want|."""

    digest: str
    relative_tolerance: float
    absolute_tolerance: float


@dataclass(frozen=True)
class Deployment:
    """What a device is told to run for one model. Generations of (device, model) only grow."""

    id: str
    device: str
    model: str
    generation: int
    variant: str
    candidate: Candidate
    activate: str = "file"
    golden: Golden | None = None


@dataclass(frozen=True)
class DeploymentStatus:
    """Where a deployment stands. `path`: the stable path of the active file; `previous`: digest in the other slot."""

    id: str
    device: str
    model: str
    generation: int
    state: DeploymentState
    digest: str = ""
    path: str = ""
    reason: str = ""
    previous: str = ""
