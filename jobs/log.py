"""Logging of the service's processes: structlog for ours, the standard library's records through the same formatter.

To stderr, one event a line; `log_format` json for machines, console for people. Secrets are taken out of all of it
(`jobs.redaction`), also of tracebacks and of what libraries say. The trainer is not concerned: it has no secrets but
those of its graders, reports by records and prints to its own log.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from jobs.redaction import Redactor, secrets_of
from jobs.settings import Settings

_QUIET = ("alembic", "fsspec", "kombu", "uvicorn.access")  # of requests `api.middleware` says more


def configure_logging(settings: Settings) -> None:
    """Set up logging for this process; call once, at its start."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        Redactor(secrets_of(settings)),
    ]
    json = settings.log_format == "json"
    renderer: Any = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer], foreign_pre_chain=shared
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
