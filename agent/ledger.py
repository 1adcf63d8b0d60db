"""What a device remembers of one model's deployments: pure values and their JSON, without any file in sight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from edgefarm import __version__
from edgefarm.errors import NeedsUpgrade
from edgefarm.model import Deployment, DeploymentState, DeploymentStatus

_SCHEMA = 1
_REMEMBERED = 32  # ended deployments per model; the controller remembers all


@dataclass(frozen=True)
class Statement:
    """What one slot holds, as `deployment.json` says it. `files`: name in the slot -> (digest, bytes)."""

    id: str
    generation: int
    digest: str
    key: str
    main: str
    variant: str
    runtime: str
    files: Mapping[str, tuple[str, int]]

    @classmethod
    def read(cls, text: str) -> Statement:
        """From `deployment.json`. Raises ValueError if it is not one."""
        try:
            raw = json.loads(text)
            artifact = raw["artifact"]
            files = {f["name"]: (f["digest"], f["bytes"]) for f in artifact["files"]}
            return cls(
                raw["id"], raw["generation"], artifact["digest"], raw["candidate"], raw["file"], raw["variant"], raw["runtime"], files
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a deployment: {error!r}") from error


def describe(deployment: Deployment, main: str, names: Mapping[str, str]) -> bytes:
    """`deployment.json` for programs that load the file. `names`: file name in the artifact -> in the slot."""
    candidate, artifact = deployment.candidate, deployment.candidate.artifact
    io = candidate.io and {
        side: [{**vars(t), "permutation": list(t.permutation), "dtype": t.dtype or None} for t in getattr(candidate.io, side)]
        for side in ("inputs", "outputs")
    }
    value: dict[str, Any] = {
        "schema": _SCHEMA,
        "id": deployment.id,
        "model": deployment.model,
        "generation": deployment.generation,
        "variant": deployment.variant,
        "candidate": candidate.key,
        "runtime": candidate.runtime,
        "options": dict(candidate.options),
        "io": io,
        "file": main,
        "artifact": {
            "digest": artifact.digest,
            "bytes": artifact.bytes,
            "format": artifact.format,
            "files": [{"name": names[f.name], "digest": f.digest, "bytes": f.bytes} for f in artifact.files],
        },
    }
    return json.dumps(value, indent=1).encode()


@dataclass(frozen=True)
class Intent:
    """What is being done to the slots right now, written down before the first step.

    `kind`: `activate` (undone by recovery unless the link was flipped) or `rollback` (finished by recovery).
    """

    kind: str
    slot: str
    id: str
    generation: int


@dataclass(frozen=True)
class Ended:
    """A deployment that must not be tried again: it failed, or was rolled back."""

    generation: int
    state: DeploymentState
    reason: str
    digest: str


@dataclass(frozen=True)
class Ledger:
    """Everything about one model that the slots themselves do not say.

    Attributes:
        generation: the highest ever seen; it never goes back.
        ended: deployment id -> how it ended.
        pin: the generation up to which an offline rollback holds, or None.
    """

    generation: int = 0
    intent: Intent | None = None
    ended: Mapping[str, Ended] = field(default_factory=dict)
    pin: int | None = None

    @classmethod
    def read(cls, text: str) -> Ledger:
        """From its JSON; what a newer version added to this schema is left out. Raises ValueError if it is none, NeedsUpgrade."""
        try:
            raw = json.loads(text)
            if raw["schema"] > _SCHEMA:
                raise NeedsUpgrade(f"schema {raw['schema']} is a newer agent's, {__version__} knows {_SCHEMA}: upgrade the agent")
            ended = {k: Ended(**{**_known(Ended, v), "state": _state(v["state"])}) for k, v in raw["ended"].items()}
            intent = Intent(**_known(Intent, raw["intent"])) if raw["intent"] else None
            return cls(raw["generation"], intent, ended, raw["pin"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a ledger: {error!r}") from error

    def write(self) -> bytes:
        """Its JSON."""
        value = {
            "schema": _SCHEMA,
            "generation": self.generation,
            "intent": vars(self.intent) if self.intent else None,
            "ended": {k: {**vars(e), "state": e.state.value} for k, e in self.ended.items()},
            "pin": self.pin,
        }
        return json.dumps(value, indent=1).encode()

    def begin(self, intent: Intent) -> Ledger:
        """With `intent` written down; a new activation lifts an offline rollback's pin."""
        pin = None if intent.kind == "activate" else self.pin
        return replace(self, generation=max(self.generation, intent.generation), intent=intent, pin=pin)

    def end(self, id: str, how: Ended) -> Ledger:
        """With a deployment remembered as ended, and no intent; the oldest are forgotten."""
        ended = {**{k: v for k, v in self.ended.items() if k != id}, id: how}
        kept = dict(list(ended.items())[-_REMEMBERED:])
        return replace(self, generation=max(self.generation, how.generation), intent=None, ended=kept)

    def done(self) -> Ledger:
        """Without an intent."""
        return replace(self, intent=None)


def _known(kind: type[Intent] | type[Ended], raw: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: raw[f.name] for f in fields(kind)}


def _state(value: str) -> DeploymentState:
    """UNSPECIFIED for one that only a newer version knows: it has ended all the same."""
    return DeploymentState(value) if value in {s.value for s in DeploymentState} else DeploymentState.UNSPECIFIED


def status_of_ended(model: str, device: str, id: str, ended: Ended, path: str) -> DeploymentStatus:
    """What the controller is told of a deployment that ended."""
    return DeploymentStatus(id, device, model, ended.generation, ended.state, ended.digest, path, ended.reason)
