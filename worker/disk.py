"""Room on the worker's disk: whether it may take jobs at all. What one job needs: `jobs.footprint`."""

from __future__ import annotations

import shutil

from jobs.settings import Settings


def problem(settings: Settings) -> str | None:
    """Why this worker should take no job now, or None."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(settings.home).free
    except OSError as error:
        return f"its folder cannot be used: {error.strerror}"
    if free < settings.min_free_bytes:
        return f"{gigabytes(free)} of disk are free, and it takes no job below {gigabytes(settings.min_free_bytes)}"
    return None


def gigabytes(size: int) -> str:
    """A size for people, exact to a megabyte."""
    return f"{size / 1e9:.3f} GB"
