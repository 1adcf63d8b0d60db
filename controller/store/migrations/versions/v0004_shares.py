"""Who used how much of which host, for the fair queue."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Creates the table."""
    op.create_table(
        "shares",
        sa.Column("host", sa.String, nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("used_ms", sa.BigInteger, nullable=False),
        sa.Column("wanting", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("host", "owner", name="pk_shares"),
    )
