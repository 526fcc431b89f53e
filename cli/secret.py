"""The secret that signs an embedded service's webhooks: made once, kept in its home for whoever receives them."""

from __future__ import annotations

import os
from pathlib import Path

from bgpo.egress.signing import new_secret

FILE = "webhook_secret"


def webhook_secret(home: Path) -> str:
    """The secret of a home folder, `whsec_` and base64. The caller holds the home's lock."""
    path = home / FILE
    if not path.exists():
        unfinished = path.with_suffix(".tmp")
        unfinished.unlink(missing_ok=True)
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(new_secret() + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    return path.read_text().strip()
