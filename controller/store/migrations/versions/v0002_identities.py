"""Join tokens; devices and users that may take part."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Creates the tables."""
    op.create_table(
        "tokens",
        sa.Column("secret_hash", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("labels", sa.String, nullable=False),
        sa.Column("uses", sa.Integer, nullable=False),
        sa.Column("expires_unix_ms", sa.BigInteger, nullable=False),
        sa.Column("replaces", sa.Boolean, nullable=False),
        sa.Column("created_by", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("secret_hash", name="pk_tokens"),
    )
    op.create_table(
        "members",
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("token", sa.String, nullable=False),
        sa.Column("labels", sa.String, nullable=False),
        sa.Column("standing", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("machines", sa.String, nullable=False),
        sa.Column("enrolled_unix_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", name="pk_members"),
    )
