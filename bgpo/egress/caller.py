"""Questions to a receiver that should be answered: POST of JSON, tried again when that may help.

What another try may help against is no answer at all, an answer that broke off, 408, 429 and 5xx. Waits double, have a
random part so that callers that failed together do not return together, and are as long as `Retry-After` asks, within
bounds. All tries of a question share its time; waiting for the gate's turn does not count. A failure's text never holds
the URL, which may hold a token, nor one of the secrets that were sent, even when the receiver echoes them.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from bgpo.egress.client import Egress, EgressFailed, Limits, Reply
from bgpo.egress.destinations import EgressRefused
from bgpo.egress.gate import Gate
from bgpo.errors import BgpoError

RETRIES = 3
FIRST_WAIT_S = 0.5
JITTER = 0.5
"""The largest part of a wait that is added to it."""
MAX_RETRY_AFTER_S = 30.0
MAX_BYTES = 1 << 20

_EXCERPT = 500
_REDACTED = "[secret]"
_AGAIN = frozenset({408, 429})


class CallFailed(BgpoError):
    """No usable answer came."""

    code = "egress_failed"

    def __init__(self, message: str, details: str | None = None) -> None:
        super().__init__(message)
        self.args = (message, details)
        self.details = details
        """The beginning of what the receiver answered, secrets taken out."""


@dataclass(frozen=True)
class _Failure:
    message: str
    details: str | None = None
    again: bool = True
    retry_after_s: float = 0.0


class Caller:
    """Asks one URL after another through one gate. Threads may share it.

    Args:
        secret_values: what must not appear in any failure.
    """

    def __init__(self, egress: Egress, gate: Gate, secret_values: Sequence[str] = ()) -> None:
        self._egress, self._gate = egress, gate
        spellings = {value for secret in secret_values for value in (secret, json.dumps(secret)[1:-1]) if value}
        self._secrets = sorted(spellings, key=len, reverse=True)

    def post(
        self,
        url: str,
        content: bytes,
        headers: Callable[[], Mapping[str, str]],
        *,
        timeout_s: float,
        max_bytes: int = MAX_BYTES,
    ) -> bytes:
        """The body of a 2xx answer.

        Args:
            headers: called for each try.

        Raises:
            CallFailed: there was none in time.
        """
        with self._gate.place():
            outcome, tries = self._tries(url, content, headers, timeout_s, max_bytes)
        if isinstance(outcome, _Failure):
            note = "" if tries == 1 else f" (tried {tries} times)"
            raise CallFailed(outcome.message + note, outcome.details)
        return outcome

    def redacted(self, text: str) -> str:
        """A text with every secret taken out."""
        for secret in self._secrets:
            text = text.replace(secret, _REDACTED)
        return text

    def excerpt(self, body: bytes) -> str | None:
        """The beginning of a body, for the author of the grader."""
        text = self.redacted(body.decode(errors="replace"))  # first: a cut could leave a part of a secret
        return f"{text[:_EXCERPT]}{'...' if len(text) > _EXCERPT else ''}" or None

    def _tries(
        self, url: str, content: bytes, headers: Callable[[], Mapping[str, str]], timeout_s: float, max_bytes: int
    ) -> tuple[bytes | _Failure, int]:
        """The last try's outcome, and how many there were."""
        clock = self._gate.clock
        deadline = clock.now() + timeout_s
        for attempt in range(RETRIES + 1):
            deadline += self._gate.turn()
            outcome = self._try(url, content, headers(), deadline - clock.now(), max_bytes)
            if isinstance(outcome, bytes) or not outcome.again or attempt == RETRIES:
                break
            wait = max(_backoff(attempt), min(outcome.retry_after_s, MAX_RETRY_AFTER_S))
            if clock.now() + wait >= deadline:
                break
            clock.sleep(wait)
        return outcome, attempt + 1

    def _try(
        self, url: str, content: bytes, headers: Mapping[str, str], left_s: float, max_bytes: int
    ) -> bytes | _Failure:
        limits = Limits(read_s=left_s, total_s=left_s, max_bytes=max_bytes)
        try:
            reply = self._egress.request("POST", url, headers=headers, content=content, limits=limits)
        except EgressRefused as refused:
            return _Failure(f"the URL {refused.message}", again=False)
        except EgressFailed as failed:
            return _Failure(f"no answer came: {failed.message}")
        return self._judged(reply, max_bytes)

    def _judged(self, reply: Reply, max_bytes: int) -> bytes | _Failure:
        if 200 <= reply.status < 300:
            if not reply.cut:
                return reply.body
            if len(reply.body) >= max_bytes:
                return _Failure(f"the answer has more than {max_bytes} bytes", again=False)
            return _Failure("the answer broke off", self.excerpt(reply.body))
        message = f"the answer has status {reply.status}"
        if 300 <= reply.status < 400:
            message += "; redirects are not followed"
        return _Failure(
            message,
            self.excerpt(reply.body),
            again=reply.status in _AGAIN or reply.status >= 500,
            retry_after_s=retry_after_s(reply.headers.get("retry-after"), time.time()),
        )


def retry_after_s(header: str | None, now: float) -> float:
    """Seconds that a `Retry-After` asks for, as a number or a date; 0 for what cannot be read.

    Args:
        now: unix seconds, for the date.
    """
    if header is None:
        return 0
    if header.isascii() and header.isdigit():
        return float(header)
    try:
        return parsedate_to_datetime(header).timestamp() - now
    except (ValueError, OverflowError):
        return 0


def _backoff(attempt: int) -> float:
    return FIRST_WAIT_S * float(2**attempt) * (1 + JITTER * secrets.randbelow(1001) / 1000)
