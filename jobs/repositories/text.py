"""What a text column can hold: PostgreSQL takes neither NUL nor lone surrogates, and models write both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def clean_in(value: Any) -> Any:
    """A JSON value with all its strings and keys cleaned."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(key): clean_in(item) for key, item in value.items()}
    return [clean_in(item) for item in value] if isinstance(value, list) else value


def clean(text: str, limit: int | None = None) -> str:
    """`text` with unstorable characters replaced, cut to `limit` characters."""
    text = text[:limit].replace("\x00", "\ufffd")
    return text.encode("utf-8", "replace").decode("utf-8")
