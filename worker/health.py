"""`python -m worker.health`: exit status 0 when a worker of this host was in touch with the database lately, else 1.

For container health checks: one container, one host name, one worker. Does not look at Redis: a worker that no doorbell
reaches is still alive.
"""

from __future__ import annotations

import socket
import sys

from sqlalchemy.exc import InterfaceError, OperationalError

from jobs.db import Database
from jobs.repositories import workers
from jobs.settings import Settings

_BEATS = 6
"""Beats a worker may miss; one comes with each round of its reconciler."""


def problem(settings: Settings) -> str | None:
    """What is wrong with the worker of this host, or None."""
    host, within_s = socket.gethostname(), settings.reconcile_s * _BEATS
    database = Database(settings.database_url)
    try:
        with database.read() as session:
            if workers.seen(session, host, within_s=within_s):
                return None
        return f"no worker of {host} was in touch with the database in the last {within_s:.0f} s"
    except (OperationalError, InterfaceError) as error:
        return f"the database does not answer: {error}"
    finally:
        database.dispose()


if __name__ == "__main__":
    sys.exit(problem(Settings()))
