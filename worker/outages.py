"""What a database that is away for a while looks like: restarted, failed over, cut off, locked for too long.

Everything in a worker tries again after these; any other database error is a mistake of ours and ends what made it.
"""

from __future__ import annotations

from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

DATABASE_OUTAGE = (OperationalError, InterfaceError, InternalError, PoolTimeout)
"""InternalError: a server that was made read-only in a failover. PoolTimeout: all connections hang."""
