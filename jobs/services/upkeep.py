"""What has to be done about files from time to time: expired ones go, result files are written, old requests forgotten.

Rows go first and their bytes after the commit; bytes whose deletion fails are orphans, and `jobs.services.sweep`'s.
"""

from __future__ import annotations

import structlog

from jobs.artifacts import ArtifactStore
from jobs.db import Database
from jobs.repositories import files, requests, uploads
from jobs.services import result_files
from jobs.services.files import forget
from jobs.settings import Settings

REMEMBER_REQUESTS_S = 24 * 3600.0
"""An Idempotency-Key of a file or an upload holds for this long."""
_REMEMBER_UPLOADS_S = 24 * 3600.0
_log = structlog.get_logger(__name__)


def tend(settings: Settings, database: Database, store: ArtifactStore) -> None:
    """One round. Any number of them may run at once. Raises StorageError."""
    with database.transaction() as session:
        gone = files.take_expired(session)
        gone += uploads.end_expired(session)
        uploads.purge(session, _REMEMBER_UPLOADS_S)
        requests.purge(session, REMEMBER_REQUESTS_S)
    if gone:
        _log.info("expired files and parts removed", count=len(gone))
    forget(store, gone)
    result_files.write_all(settings, database, store)
