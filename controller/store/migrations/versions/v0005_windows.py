"""When and where the launches of an order may begin."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds the columns: orders that are there may begin at any time, on any device of their class."""
    op.add_column("orders", sa.Column("window", sa.String, nullable=False, server_default=""))
    op.add_column("orders", sa.Column("only_on", sa.String, nullable=False, server_default=""))
