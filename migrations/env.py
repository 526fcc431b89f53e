"""Run by alembic. `migrations.upgrade` passes the connection; its transaction is the migration's."""

from __future__ import annotations

from alembic import context

from jobs.tables import Base


def run() -> None:
    """Migrate on the given connection, or on a SQLite scratch database for `alembic revision` by hand."""
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=False)
    context.run_migrations()


run()
