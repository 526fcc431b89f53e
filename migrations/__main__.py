"""`python -m migrations`: upgrade the database named by the settings."""

from __future__ import annotations

import sys

from jobs.settings import Settings
from migrations import MigrationError, upgrade

if __name__ == "__main__":
    try:
        upgrade(Settings().database_url)
    except MigrationError as error:
        sys.exit(str(error))
