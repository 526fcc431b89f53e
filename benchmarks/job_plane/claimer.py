"""Claims jobs and ends them until none is left: `python -m benchmarks.job_plane.claimer`.

Reads the database's URL from a line of stdin, says `ready`, waits for another line, and prints how many it took.
"""

from __future__ import annotations

import os
import sys

from jobs.db import Database
from jobs.failures import JobError
from jobs.repositories import jobs
from jobs.resources import Slot
from jobs.states import State


def main() -> None:
    """Claim until there is nothing left."""
    database = Database(sys.stdin.readline().strip())
    slot = Slot(f"claimer-{os.getpid()}")
    with database.read() as session:
        session.connection()
    print("ready", flush=True)
    sys.stdin.readline()
    taken = 0
    while True:
        with database.transaction() as session:
            claim = jobs.claim_next(session, slot, 60)
        if claim is None:
            break
        taken += 1
        with database.transaction() as session:
            jobs.finish(session, claim.job_id, claim.epoch, State.FAILED, error=JobError("server_error", "measured"))
    database.dispose()
    print(taken)


if __name__ == "__main__":
    main()
