"""First schema: runs, devices, orders, attempts, deployments."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Creates the tables."""
    op.create_table(
        "runs",
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("campaign", sa.String, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("spec_digest", sa.String, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_runs"),
        sa.UniqueConstraint("name", name="uq_runs_name"),
        sa.UniqueConstraint("campaign", "number", name="uq_runs_campaign"),
    )
    op.create_index("ix_runs_campaign", "runs", ["campaign"])
    op.create_table(
        "devices",
        sa.Column("name", sa.String, nullable=False),
        sa.Column("last_seen_unix_ms", sa.BigInteger, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_devices"),
    )
    op.create_table(
        "orders",
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("run", sa.String, nullable=False),
        sa.Column("device", sa.String, nullable=False),
        sa.Column("device_class", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("sent_to", sa.String, nullable=False),
        sa.Column("touched", sa.Boolean, nullable=False),
        sa.Column("losses", sa.Integer, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_orders"),
        sa.UniqueConstraint("id", name="uq_orders_id"),
        sa.ForeignKeyConstraint(["run"], ["runs.name"], name="fk_orders_run_runs"),
    )
    op.create_index("ix_orders_run", "orders", ["run"])
    op.create_index("ix_orders_state", "orders", ["state"])
    op.create_table(
        "attempts",
        sa.Column("order_id", sa.String, nullable=False),
        sa.Column("index", sa.Integer, nullable=False),
        sa.Column("retired", sa.Integer, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("order_id", "index", "retired", name="pk_attempts"),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name="fk_attempts_order_id_orders"),
    )
    op.create_table(
        "deployments",
        sa.Column("id", sa.String, nullable=False),
        sa.Column("device", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("candidate_key", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("committed", sa.Boolean, nullable=False),
        sa.Column("undoes", sa.String, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=True),
        sa.Column("status", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_deployments"),
        sa.UniqueConstraint("device", "model", "generation", name="uq_deployments_device"),
        sa.ForeignKeyConstraint(["device"], ["devices.name"], name="fk_deployments_device_devices"),
    )
