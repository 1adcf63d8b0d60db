"""Where a device measures, and what a measurement gives. An idle agent holds this much of the bench and no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.bench.affinity import Cores
from agent.bench.gate import Gate
from agent.power import Meter
from edgefarm.model import Conditions, Outcome


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Surroundings:
    """What the device's administrator wants around a measurement.

    Attributes:
        cores: that a runner may use; None: all that the agent may.
        gate: decides when a launch may begin.
        governor: CPU frequency governor while measuring; empty: it is left alone.
        governor_file: where it is kept what the governor was before.
    """

    cores: Cores | None = None
    gate: Gate = field(default_factory=Gate)
    governor: str = ""
    governor_file: Path | None = None

    def fingerprint(self) -> dict[str, str]:
        """What of it makes numbers those of another device class."""
        found = {"cpus": str(self.cores)} if self.cores is not None and self.cores.pinned else {}
        return {**found, "governor": self.governor} if self.governor else found


@dataclass(frozen=True)
class Site:
    """Where and how this device measures.

    Attributes:
        scratch: an existing folder. Results are left there, see `Measured.blobs`; the rest is removed.
        threads: the device's limit; a candidate without the option `threads` gets it.
        lock: file of the host's measure lock; None = the host's usual one.
        cancelled: looked at every 50 ms.
        sensors_root: `/`, or a copied tree.
        environment: variables of the runner on top of the few that are passed on.
        unit_socket: where systemd starts runners in units of their own; None: they are children of this process.
        meter: what the device's user said of where its power is read.
        surroundings: cores, temperature and governor.
    """

    scratch: Path
    threads: int = 1
    lock: Path | None = None
    cancelled: Callable[[], bool] = _never
    sensors_root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=dict)
    unit_socket: Path | None = None
    meter: Meter | None = None
    surroundings: Surroundings = field(default_factory=Surroundings)


@dataclass(frozen=True)
class Measured:
    """One execution of one launch or pass.

    Attributes:
        outcome: its digests are still empty: they are those of `blobs`.
        conditions: what surrounded it.
        blobs: `samples` of a latency, `outputs` and `golden` of an accuracy: files in the scratch folder, for the caller to move away.
        duration_ns: how long it took, without waiting for the host's lock, and for the device to cool.
        waited_ns: how long it waited for both, before.
    """

    outcome: Outcome
    conditions: Conditions
    blobs: Mapping[str, Path] = field(default_factory=dict)
    duration_ns: int = 0
    waited_ns: int = 0
