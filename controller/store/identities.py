"""What is kept of those who may take part: join tokens (as hashes), devices and users with their keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Token:
    """A join token, known by the hash of its secret only.

    Attributes:
        kind: device or user.
        name: the only name that it is good for; empty: any that is free.
        role: of the user that joins with it.
        uses: how often it may still be used.
        replaces: whether it may give a name that is taken to another key.
    """

    secret_hash: str
    kind: str
    name: str
    role: str
    labels: Mapping[str, str]
    uses: int
    expires_unix_ms: int
    replaces: bool
    created_by: str


@dataclass(frozen=True)
class Member:
    """A device or a user.

    Attributes:
        kind: device or user.
        keys: SHA-256 of its public keys, in hex, newest last: one of a device, one of each machine where a user has logged in.
        token: hash of the token's secret with which it joined.
        standing: `good`, `revoked` or `quarantined`, with the reason.
        machines: those that its device's key was shown by, newest last.
    """

    kind: str
    name: str
    role: str = ""
    keys: tuple[str, ...] = ()
    token: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    standing: str = "good"
    reason: str = ""
    machines: tuple[str, ...] = ()
    enrolled_unix_ms: int = 0


class Identities(Protocol):
    """The part of a store that knows who may take part. All raise StorageError."""

    def add_token(self, token: Token, now_unix_ms: int) -> None:
        """Keeps a token; forgets those that have expired or were used up, and an older one for the same name."""
        ...

    def token(self, secret_hash: str) -> Token | None:
        """One token."""
        ...

    def drop_tokens(self, kind: str, name: str) -> None:
        """Forgets the tokens that are good for this name only."""
        ...

    def save_member(self, member: Member, uses_token: str = "") -> None:
        """Adds or replaces a member, and takes a use of a token in the same transaction."""
        ...

    def members(self) -> list[Member]:
        """All members, by kind and name."""
        ...
