"""`python -m worker.generator.health`: exit status 0 when a generator of this host was seen lately, else 1.

For container health checks, as `worker.health` is for workers.
"""

from __future__ import annotations

import socket
import sys

from sqlalchemy.exc import InterfaceError, OperationalError

from jobs.db import Database
from jobs.repositories import generators
from jobs.settings import Settings


def problem(settings: Settings) -> str | None:
    """What is wrong with the generator of this host, or None."""
    host = socket.gethostname()
    database = Database(settings.database_url)
    try:
        with database.read() as session:
            if generators.any_live(session, host):
                return None
        return f"no generator of {host} was in touch with the database in the last {generators.LIVE_S:.0f} s"
    except (OperationalError, InterfaceError) as error:
        return f"the database does not answer: {error}"
    finally:
        database.dispose()


if __name__ == "__main__":
    sys.exit(problem(Settings()))
