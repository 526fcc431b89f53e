"""Webhooks: sending the ones that are due, and what a job's user sees of them."""

from __future__ import annotations

from jobs.db import Database
from jobs.settings import Settings


def deliver_due(settings: Settings, database: Database) -> int:
    """Send all webhooks that are due; returns the number of tries. Any number of processes may do so at once."""
    return 0
