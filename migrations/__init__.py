"""Schema migrations (alembic). `python -m migrations` brings the database of the settings to the newest schema."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from jobs.db import create_engine

_LOCK = 0x6267706F  # "bgpo": one upgrade at a time, whoever starts it


def config() -> Config:
    """The alembic configuration; there is no ini file."""
    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent))
    settings.set_main_option("path_separator", "os")
    return settings


def upgrade(database_url: str, revision: str = "head") -> None:
    """Upgrade under a lock, so that several services may start at once."""
    engine = create_engine(database_url)
    try:
        with engine.execution_options(bgpo_write=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            settings = config()
            settings.attributes["connection"] = connection
            command.upgrade(settings, revision)
    finally:
        engine.dispose()
