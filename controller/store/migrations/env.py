"""Alembic's entry: runs the wanted migrations on the connection that the store gives it."""

from __future__ import annotations

from alembic import context

from controller.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
