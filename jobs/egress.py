"""The one way out: HTTP requests to addresses that users name."""

from __future__ import annotations

from bgpo.errors import InvalidInput


class EgressRefused(InvalidInput):
    """The URL leads where requests may not go; the message can be shown to its author."""

    code = "invalid_url"


def check_url(url: str, *, allow_private: bool = False) -> None:
    """Refuse a URL that no request may go to, as far as its text tells. Raises EgressRefused."""
