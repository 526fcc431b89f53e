"""Which request something was made by: the id the client was told, kept with the job and told to its workers.

The API binds it to the log context of the request (`structlog.contextvars`), which reaches service functions in their
threads. A job has it in the data of its first event, so it needs no column: whoever has the events of a job, or the log
of its API, worker or trainer, finds the others by it.
"""

from __future__ import annotations

from typing import Any

import structlog

KEYS = ("request_id", "client_request_id", "traceparent")


def current() -> dict[str, Any] | None:
    """Of the request that is being answered; None outside of one."""
    bound = structlog.contextvars.get_contextvars()
    return {name: bound[name] for name in KEYS if name in bound} or None
