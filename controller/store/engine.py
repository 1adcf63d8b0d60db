"""Connections to the store's database: pragmas, transactions, migrations, and errors that say what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, exc, inspect, text
from sqlalchemy.pool import StaticPool

from controller.store.tables import HEAD
from edgefarm.errors import StorageError, UserError

BUSY_TIMEOUT_S = 30.0
_WRITE = "edgefarm_write"

_REMEDIES = (
    ("full", "free some space on its file system, then run again"),
    ("readonly", "make it writable, or choose another place with --state"),
    ("unable to open", "make its folder writable, or choose another place with --state"),
    ("locked", "another process holds it: stop that one, then run again"),
    ("malformed", "the file is damaged: restore it from a backup, or move it away to start anew"),
    ("not a database", "the file is damaged: restore it from a backup, or move it away to start anew"),
)


def remedy(detail: str) -> str:
    """What a person can do about a database error that says `detail`."""
    return next((r for words, r in _REMEDIES if words in detail), "check the disk and the database, then run again")


@contextlib.contextmanager
def translated(place: str) -> Iterator[None]:
    """Turns errors of the database into StorageError: the place, what is wrong, what to do."""
    try:
        yield
    except exc.IntegrityError:
        raise
    except exc.DBAPIError as error:
        detail = str(error.orig)
        raise StorageError(f"store {place}: {detail}: {remedy(detail)}") from error


def connect(location: Path | str) -> tuple[Engine, str]:
    """An engine for a path, `:memory:` or a SQLAlchemy URL, and the name of the place for messages."""
    if isinstance(location, str) and "://" in location:
        engine = create_engine(location)
        return engine, engine.url.render_as_string(hide_password=True)
    if str(location) == ":memory:":
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        engine = create_engine(f"sqlite:///{location}", connect_args={"timeout": BUSY_TIMEOUT_S}, pool_size=8, max_overflow=24)
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine, str(location)


def _set_up_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # the driver begins no transaction by itself: `_begin_sqlite` does
    cursor = connection.cursor()
    # FULL: an attempt is acknowledged, and then forgotten by its device, only when it would survive a power cut.
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", f"busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and then writes can't be made to wait for another writer: take the lock at once.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITE) else "BEGIN")


@contextlib.contextmanager
def transaction(engine: Engine, place: str, *, write: bool) -> Iterator[Connection]:
    """One transaction, committed at the end of the block, rolled back if it raises."""
    with translated(place), engine.connect().execution_options(**{_WRITE: write}) as connection, connection.begin():
        yield connection


def upgrade(engine: Engine, place: str) -> None:
    """Brings the schema to this version's. Raises UserError if it is a newer version's."""
    with transaction(engine, place, write=False) as connection:
        if _version(connection) == HEAD:
            return
    # Alembic takes a quarter of a second to import: only where there is something to do.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "controller.store:migrations")
    config.set_main_option("path_separator", "os")
    with transaction(engine, place, write=True) as connection:
        version = _version(connection)
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if version and version not in known:
            raise UserError(
                f"store {place}: its schema {version} was written by a newer version of edgefarm (this one knows {HEAD}): "
                "upgrade edgefarm, or choose another place with --state"
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _version(connection: Connection) -> str:
    if not inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or "")
