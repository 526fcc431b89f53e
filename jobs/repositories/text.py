"""What a text column can hold: PostgreSQL takes neither NUL nor lone surrogates, and models write both."""

from __future__ import annotations


def clean(text: str, limit: int | None = None) -> str:
    """`text` with unstorable characters replaced, cut to `limit` characters."""
    text = text[:limit].replace("\x00", "\ufffd")
    return text.encode("utf-8", "replace").decode("utf-8")
