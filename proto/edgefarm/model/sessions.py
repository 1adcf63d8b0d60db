"""What an agent and the controller say to each other over their stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Union

from edgefarm.model.devices import Deployment, DeploymentStatus, Device
from edgefarm.model.trials import Attempt, AttemptId, Order

PROTOCOL = 1
LEAST_PROTOCOL = max(1, PROTOCOL - 2)  # that we speak too
CHUNK_BYTES = 2**20  # of a transfer; a message costs as much as copying some hundred KiB, so smaller ones cost throughput
FEATURES: tuple[str, ...] = (
    "latency",
    "latency-paced",
    "latency-offline",
    "latency-sustained",
    "latency-server",
    "memory",
    "accuracy",
    "energy",
    "activate-file",
    "window",
    "profile",
    "fallback",
)


@dataclass(frozen=True)
class Hello:
    """First message of a session: who the agent is and what it still holds.

    `instance` is new with every start of the agent's process; `probed` is False while capabilities are still being proved.
    """

    protocol: int
    features: tuple[str, ...]
    instance: str
    device: Device
    probed: bool
    open_orders: tuple[str, ...] = ()
    unacknowledged: tuple[AttemptId, ...] = ()
    deployments: tuple[DeploymentStatus, ...] = ()


@dataclass(frozen=True)
class Heartbeat:
    """Sign of life; `order` is the one being worked on, empty if idle. `paused`: no launch begins until the device's user resumes.

    `local_s`: seconds since midnight, by the device's own clock and time zone; None: it has no clock that can be believed.
    """

    order: str = ""
    disk_free_bytes: int = 0
    rss_bytes: int = 0
    paused: bool = False
    local_s: int | None = None


@dataclass(frozen=True)
class Probed:
    """The device, with its capabilities proved."""

    device: Device


@dataclass(frozen=True)
class OrderEnded:
    """The agent holds the order no more; every attempt of it was sent before.

    `local_s`: it gave the order back at this time of its day (as in Heartbeat), which is outside of the order's window.
    """

    order: str
    cancelled: bool = False
    local_s: int | None = None


@dataclass(frozen=True)
class Series:
    """One number of a family. The device is not among its labels: the receiver knows whom it listens to."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Family:
    """All series of one metric, by its name on the page (`edgefarm.metrics`)."""

    name: str
    series: tuple[Series, ...] = ()


@dataclass(frozen=True)
class Telemetry:
    """Families that changed; each replaces the one of its name that was sent before in this session, an empty one ends it."""

    families: tuple[Family, ...] = ()


AgentBody = Union[Hello, Heartbeat, Probed, Attempt, OrderEnded, DeploymentStatus, Telemetry]


@dataclass(frozen=True)
class Welcome:
    """Answer to Hello. `session` authenticates the device's other calls and a re-attach; `telemetry_ns` 0: no telemetry is wanted.

    `unix_ms` is the controller's clock, for a device that has none; `version` its own. `upgrade`: why the agent is told nothing until it
    is upgraded, empty if it is new enough.
    """

    protocol: int
    features: tuple[str, ...]
    epoch: int
    heartbeat_ns: int
    session: str
    telemetry_ns: int = 0
    unix_ms: int = 0
    version: str = ""
    upgrade: str = ""


@dataclass(frozen=True)
class Cancel:
    """Stop working on an order, now."""

    order: str


@dataclass(frozen=True)
class Ack:
    """The attempt is stored; the agent may forget it."""

    order: str
    index: int


@dataclass(frozen=True)
class Drain:
    """Finish what runs, take nothing new."""


ControllerBody = Union[Welcome, Order, Cancel, Ack, Deployment, Drain]
