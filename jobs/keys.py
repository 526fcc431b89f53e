"""API keys as text: how they are made, what of one is stored, and whether it is the one.

    bgpo_live_4fK29xQa_0hT...32 random characters...6 of a checksum

The prefix lets secret scanners find a key that leaked, the id finds its row, and the checksum refuses most mistyped
keys without asking the database. 32 random characters are 190 bits, so a fast keyed hash (HMAC-SHA256 under the
installation's pepper) is all that is stored: who reads the database can neither use a key nor test guesses.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["live", "admin"]
"""A project's key, or an administrator's."""
PREFIX = "bgpo_"
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID, _RANDOM, _CHECK = 8, 32, 6
_FORM = re.compile(rf"bgpo_(live|admin)_([0-9A-Za-z]{{{_ID}}})_[0-9A-Za-z]{{{_RANDOM}}}([0-9A-Za-z]{{{_CHECK}}})")


@dataclass(frozen=True)
class Key:
    """A whole key. Shown once, never stored."""

    kind: Kind
    id: str
    """Of its row."""
    text: str = field(repr=False)


def new_key(kind: Kind) -> Key:
    """A key nobody has had before."""
    name, body = _random(_ID), _random(_RANDOM)
    start = f"{PREFIX}{kind}_{name}_{body}"
    return Key(kind, _row_id(name), start + _checksum(start))


def parse(text: str) -> Key | None:
    """The key in a request; None when it cannot be one of ours."""
    found = _FORM.fullmatch(text)
    if found is None or _checksum(text[:-_CHECK]) != found[3]:
        return None
    return Key("admin" if found[1] == "admin" else "live", _row_id(found[2]), text)


def digest(pepper: bytes, key: Key) -> str:
    """What the row holds of a key."""
    return hmac.new(pepper, key.text.encode(), hashlib.sha256).hexdigest()


def is_same(one: str, other: str) -> bool:
    """Whether two digests are equal, in a time that tells nothing."""
    return hmac.compare_digest(one, other)


def redacted(kind: Kind, key_id: str) -> str:
    """How a key is shown after its first time."""
    return f"{PREFIX}{kind}_{key_id.removeprefix('key_')}_..."


def _row_id(name: str) -> str:
    return f"key_{name}"


def _random(length: int) -> str:
    return "".join(secrets.choice(_BASE62) for _ in range(length))


def _checksum(text: str) -> str:
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(_CHECK):
        number, rest = divmod(number, len(_BASE62))
        digits = _BASE62[rest] + digits
    return digits
