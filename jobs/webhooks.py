"""What a webhook is made of beside its signature (`bgpo.egress.signing`): the body, and when the next try comes."""

from __future__ import annotations

import json
import secrets
from typing import Literal

from bgpo.egress import retry_after_s

EventType = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
"""What is told."""
RETRY_DELAYS_S = (5.0, 30.0, 120.0, 600.0, 3600.0, 6 * 3600.0, 12 * 3600.0)
"""Waits after the first try, the second, ...; after one try more than there are waits the delivery is dead."""
JITTER = 0.2
"""The largest part of a wait that is added to it, so that failures that came together do not return together."""
MAX_RETRY_AFTER_S = 24 * 3600.0
"""A receiver may ask for a longer wait, up to this."""


def body(event_id: str, type: str, created_at: float, job_id: str) -> bytes:
    """The event as it is sent: the same bytes in every try."""
    event = {
        "id": event_id,
        "object": "event",
        "created_at": int(created_at),
        "type": type,
        "data": {"id": job_id},
    }
    return json.dumps(event, separators=(",", ":")).encode()


def retry_in(attempt: int, retry_after: str | None = None, now: float = 0) -> float | None:
    """Seconds to wait after the `attempt`-th try (from 1) failed; None when it was the last.

    Args:
        retry_after: the header, in seconds or as a date; what cannot be read is ignored.
        now: unix seconds, for the date.
    """
    if attempt > len(RETRY_DELAYS_S):
        return None
    wait = RETRY_DELAYS_S[attempt - 1]
    wait += wait * JITTER * secrets.randbelow(1001) / 1000
    return max(wait, min(retry_after_s(retry_after, now), MAX_RETRY_AFTER_S))
