"""Takes secrets out of log lines: the last step before a line is written, so that nothing has to think of it earlier.

Three nets, each for what the others let through. Fields whose name says that they hold a secret lose their value. Texts
that look like a secret we know the form of (our keys, webhook secrets, bearer headers, passwords in URLs, keys of
common services) lose it wherever they stand. And the secrets of this process's own settings are cut out by value, as
they may look like anything.

A secret of a user that looks like nothing, in a text whose name says nothing, stays: such values must not be logged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa
from pydantic import BaseModel, SecretStr

GONE = "[redacted]"
_MIN_VALUE = 6  # a shorter one would take common words out of every line
_MAX_DEPTH = 8
_NAMES = re.compile(
    r"(?i)^(proxy-)?authorization$|^(set-)?cookie$|(^|[_-])(api[_-]?key|password|passwd|secret|token|pepper|private[_-]?key)$"
)
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b(bgpo_(?:live|admin)_[0-9A-Za-z]{8})_[0-9A-Za-z]+"), rf"\1_{GONE}"),
    (re.compile(r"\bwhsec_[0-9A-Za-z+/=_-]+"), f"whsec_{GONE}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[0-9A-Za-z._~+/=-]{6,}"), rf"\1 {GONE}"),
    (re.compile(r"(?<=://)([^\s/:@]*):[^\s/@]+@"), rf"\1:{GONE}@"),
    (re.compile(r"\b(sk|hf)([-_])[0-9A-Za-z_-]{16,}"), rf"\1\2{GONE}"),
    (re.compile(r"\bAKIA[0-9A-Z]{16}\b"), GONE),
)


class Redactor:
    """A structlog processor."""

    def __init__(self, values: frozenset[str] = frozenset()) -> None:
        long = sorted((value for value in values if len(value) >= _MIN_VALUE), key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, long))) if long else None

    def __call__(self, logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {
            name: value if name.startswith("_") else self._clean(name, value, 0)  # structlog's own objects
            for name, value in event.items()
        }

    def text(self, text: str) -> str:
        """`text` without what looks like a secret or is one of ours."""
        for form, shown in _FORMS:
            text = form.sub(shown, text)
        return text if self._values is None else self._values.sub(GONE, text)

    def _clean(self, name: str, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value
        if _NAMES.search(name) or isinstance(value, SecretStr):
            return GONE
        if depth < _MAX_DEPTH and isinstance(value, Mapping):
            return {key: self._clean(str(key), each, depth + 1) for key, each in value.items()}
        if depth < _MAX_DEPTH and isinstance(value, list | tuple | set | frozenset):
            return [self._clean(name, each, depth + 1) for each in value]
        return self.text(value if isinstance(value, str) else str(value))


def secrets_of(settings: BaseModel) -> frozenset[str]:
    """Every secret of the settings, and the passwords in their URLs."""
    return frozenset(_found(settings))


def _found(value: Any) -> Iterator[str]:
    if isinstance(value, SecretStr):
        secret = value.get_secret_value()
        password = _password(secret)
        yield from [password] if password else secret.split()
    elif isinstance(value, str):
        if password := _password(value):
            yield password
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _found(getattr(value, name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _found(each)


def _password(text: str) -> str | None:
    if "://" not in text:
        return None
    try:
        return sa.make_url(text).password or unquote(urlsplit(text).password or "") or None
    except (ValueError, sa.exc.ArgumentError):
        return None
