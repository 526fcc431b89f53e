"""`python -m migrations`: upgrade the database named by the settings."""

from __future__ import annotations

from jobs.settings import Settings
from migrations import upgrade

if __name__ == "__main__":
    upgrade(Settings().database_url)
