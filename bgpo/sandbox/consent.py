"""The operator's consent to running foreign programs without a wall."""

from __future__ import annotations

import os

UNSANDBOXED = "BGPO_ALLOW_UNSANDBOXED"
"""Environment variable of the consent: "1" gives it."""


def unsandboxed_allowed() -> bool:
    """Whether the operator consents."""
    return os.environ.get(UNSANDBOXED) == "1"
