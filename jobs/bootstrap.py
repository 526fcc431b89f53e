"""`python -m jobs.bootstrap NAME`: makes an administrator's key in the database of the settings, and prints it.

For the first one, which no other key can make. Whoever may read the settings may do this: they hold the database.
"""

from __future__ import annotations

import sys

from sqlalchemy.exc import SQLAlchemyError

from jobs.db import Database
from jobs.repositories.schema import is_current
from jobs.services import keys
from jobs.settings import Settings
from jobs.tables import DEFAULT_ORGANIZATION


def make(settings: Settings, name: str) -> str:
    """The new key.

    Raises:
        RuntimeError: the database has another schema.
    """
    database = Database(settings.database_url)
    try:
        with database.read() as session:
            if not is_current(session):
                raise RuntimeError("the database has not the schema of this version: run `python -m migrations`")
        return keys.make_admin(settings, database, DEFAULT_ORGANIZATION, name=name, expires_in_s=None, by=None).value
    finally:
        database.dispose()


def main() -> int:
    """The exit status."""
    try:
        key = make(Settings(), sys.argv[1])
    except (RuntimeError, SQLAlchemyError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{key}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
