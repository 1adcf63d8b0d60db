"""The tables, as the newest migration leaves them (a contract test compares the two).

What a row is about is kept as wire bytes (`payload`); columns beside it are only what is searched for or counted.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

HEAD = "0005"  # the newest migration's id

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

runs = Table(
    "runs",
    metadata,
    Column("sequence", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("campaign", String, nullable=False),
    Column("number", Integer, nullable=False),
    Column("spec_digest", String, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    UniqueConstraint("campaign", "number"),
)

devices = Table(
    "devices",
    metadata,
    Column("name", String, primary_key=True),
    Column("last_seen_unix_ms", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)

orders = Table(
    "orders",
    metadata,
    Column("sequence", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("run", String, ForeignKey("runs.name"), nullable=False, index=True),
    Column("device", String, nullable=False),
    Column("device_class", String, nullable=False),
    Column("state", String, nullable=False, index=True),
    Column("sent_to", String, nullable=False),
    Column("touched", Boolean, nullable=False),  # an attempt arrived since it was sent last
    Column("losses", Integer, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("window", String, nullable=False, server_default=""),
    Column("only_on", String, nullable=False, server_default=""),  # JSON
)

attempts = Table(
    "attempts",
    metadata,
    Column("order_id", String, ForeignKey("orders.id"), primary_key=True),
    Column("index", Integer, primary_key=True),
    Column("retired", Integer, primary_key=True),  # 0 = counts; others were set aside by a retry
    Column("revision", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)

deployments = Table(
    "deployments",
    metadata,
    Column("id", String, primary_key=True),
    Column("device", String, ForeignKey("devices.name"), nullable=False),
    Column("model", String, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("candidate_key", String, nullable=False),
    Column("state", String, nullable=False),
    Column("committed", Boolean, nullable=False),  # was committed at some time
    Column("undoes", String, nullable=False),  # id of the deployment that this one rolls back
    Column("payload", LargeBinary, nullable=True),  # null: made by another controller, known from the device only
    Column("status", LargeBinary, nullable=False),
    UniqueConstraint("device", "model", "generation"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("secret_hash", String, primary_key=True),
    Column("kind", String, nullable=False),
    Column("name", String, nullable=False),
    Column("role", String, nullable=False),
    Column("labels", String, nullable=False),  # JSON
    Column("uses", Integer, nullable=False),
    Column("expires_unix_ms", BigInteger, nullable=False),
    Column("replaces", Boolean, nullable=False),
    Column("created_by", String, nullable=False),
)

members = Table(
    "members",
    metadata,
    Column("kind", String, primary_key=True),  # device or user
    Column("name", String, primary_key=True),
    Column("role", String, nullable=False),
    Column("key", String, nullable=False),  # SHA-256 of the public keys, with spaces between them
    Column("token", String, nullable=False),
    Column("labels", String, nullable=False),  # JSON
    Column("standing", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("machines", String, nullable=False),  # JSON
    Column("enrolled_unix_ms", BigInteger, nullable=False),
)

holds = Table(
    "holds",
    metadata,
    Column("kind", String, primary_key=True),
    Column("name", String, primary_key=True),  # of a device or a campaign
    Column("holder", String, nullable=False),
    Column("expires_unix_ms", BigInteger, nullable=False),  # 0: never
)

shares = Table(
    "shares",
    metadata,
    Column("host", String, primary_key=True),
    Column("owner", String, primary_key=True),
    Column("used_ms", BigInteger, nullable=False),
    Column("wanting", Boolean, nullable=False),  # had orders for the host when this was written
)

Index("ix_runs_campaign", runs.c.campaign)
