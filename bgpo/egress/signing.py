"""Signatures of what goes out, after Standard Webhooks: webhooks and graders' requests are signed alike.

A few lines of our own instead of the `standardwebhooks` package, which has no part for several secrets at once.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets

_PREFIX = "whsec_"
_KEY_BYTES = range(24, 65)
_NEW_KEY_BYTES = 32


def new_secret() -> str:
    """A secret nobody can guess."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_NEW_KEY_BYTES)).decode()


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


def headers(message_id: str, timestamp: float, content: bytes, signing_keys: list[bytes]) -> dict[str, str]:
    """What goes with a JSON body: its id, the time of the try, and a signature for each key."""
    signed = f"{message_id}.{int(timestamp)}.".encode() + content
    signatures = [base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in signing_keys]
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(timestamp)),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
