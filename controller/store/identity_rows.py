"""Statements about tokens and members; each function runs inside the caller's transaction."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, delete, insert, or_, select, update

from controller.store.identities import Member, Token
from controller.store.tables import members, tokens


def add_token(connection: Connection, token: Token, now_unix_ms: int) -> None:
    """Keeps a token; those that are over, and an older one for the same name, go."""
    connection.execute(delete(tokens).where(or_(tokens.c.uses < 1, tokens.c.expires_unix_ms <= now_unix_ms)))
    if token.name:
        drop_tokens(connection, token.kind, token.name)
    connection.execute(insert(tokens).values(asdict(token) | {"labels": json.dumps(dict(token.labels))}))


def token(connection: Connection, secret_hash: str) -> Token | None:
    """One token."""
    row = connection.execute(select(tokens).where(tokens.c.secret_hash == secret_hash)).first()
    return None if row is None else Token(**{**row._mapping, "labels": json.loads(row.labels)})


def drop_tokens(connection: Connection, kind: str, name: str) -> None:
    """Forgets the tokens that are good for this name only."""
    connection.execute(delete(tokens).where(tokens.c.kind == kind, tokens.c.name == name))


def save_member(connection: Connection, member: Member, uses_token: str) -> None:
    """Adds or replaces a member; takes a use of a token."""
    connection.execute(delete(members).where(members.c.kind == member.kind, members.c.name == member.name))
    connection.execute(insert(members).values(_row(member)))
    if uses_token:
        connection.execute(update(tokens).where(tokens.c.secret_hash == uses_token).values(uses=tokens.c.uses - 1))


def all_members(connection: Connection) -> list[Member]:
    """All members, by kind and name."""
    rows = connection.execute(select(members).order_by(members.c.kind, members.c.name))
    return [_member(dict(r._mapping)) for r in rows]


def _member(row: dict[str, Any]) -> Member:
    keys = tuple(row.pop("key").split())
    return Member(**row | {"keys": keys, "labels": json.loads(row["labels"]), "machines": tuple(json.loads(row["machines"]))})


def _row(member: Member) -> dict[str, Any]:
    row = asdict(member)
    return row | {"key": " ".join(row.pop("keys")), "labels": json.dumps(dict(member.labels)), "machines": json.dumps(member.machines)}
