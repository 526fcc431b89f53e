"""What a webhook is made of, after Standard Webhooks: the body, its signatures, and when the next try comes.

A few lines of our own instead of the `standardwebhooks` package, which has no part for several secrets at once.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import secrets
from email.utils import parsedate_to_datetime

RETRY_DELAYS_S = (5.0, 30.0, 120.0, 600.0, 3600.0, 6 * 3600.0, 12 * 3600.0)
"""Waits after the first try, the second, ...; after one try more than there are waits the delivery is dead."""
JITTER = 0.2
"""The largest part of a wait that is added to it, so that failures that came together do not return together."""
MAX_RETRY_AFTER_S = 24 * 3600.0
"""A receiver may ask for a longer wait, up to this."""

_PREFIX = "whsec_"
_KEY_BYTES = range(24, 65)


def keys(text: str) -> list[bytes]:
    """The signing keys of a setting: `whsec_` and base64, several separated by spaces while one replaces another.

    Raises:
        ValueError: saying what is wrong, without showing the secret.
    """
    found = []
    for secret in text.split():
        if not secret.startswith(_PREFIX):
            raise ValueError(f"a webhook secret begins with {_PREFIX}")
        try:
            key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            raise ValueError(f"a webhook secret is {_PREFIX} and base64") from None
        if len(key) not in _KEY_BYTES:
            raise ValueError(f"a webhook secret has {_KEY_BYTES.start} to {_KEY_BYTES.stop - 1} bytes, not {len(key)}")
        found.append(key)
    return found


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


def headers(event_id: str, timestamp: float, content: bytes, signing_keys: list[bytes]) -> dict[str, str]:
    """What goes with a body: its id, the time of the try, and a signature for each key."""
    signed = f"{event_id}.{int(timestamp)}.".encode() + content
    signatures = [base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in signing_keys]
    return {
        "content-type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": str(int(timestamp)),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


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
    return max(wait, min(_seconds(retry_after, now), MAX_RETRY_AFTER_S))


def _seconds(retry_after: str | None, now: float) -> float:
    if retry_after is None:
        return 0
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        return parsedate_to_datetime(retry_after).timestamp() - now
    except (ValueError, OverflowError):
        return 0
