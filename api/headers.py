"""Response headers every answer has, whoever made it.

They matter to browsers that are led to this service: nothing here is a page, so nothing may be run, framed, guessed at
or remembered. Strict-Transport-Security is left to the proxy that speaks TLS, because only that knows whether the whole
host does. There are no CORS headers, so scripts of other sites cannot read an answer.
"""

from __future__ import annotations

from collections.abc import Iterable

API_VERSION = "2020-10-01"
"""The version OpenAI's API states."""
SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_NO_STORE = (b"cache-control", b"no-store")


def complete(given: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """An answer's own headers with these; only stored bytes, which say so themselves, may be cached."""
    headers = list(given)
    if not any(name.lower() == b"cache-control" for name, _ in headers):
        headers.append(_NO_STORE)
    return [*headers, (b"openai-version", API_VERSION.encode()), *SECURITY]
