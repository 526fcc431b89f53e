"""Which wall this machine has."""

from __future__ import annotations

from bgpo.errors import SandboxError
from bgpo.sandbox.consent import UNSANDBOXED, unsandboxed_allowed
from bgpo.sandbox.launch import Unwalled, Wall

__all__ = ["Wall", "find_wall"]


def find_wall() -> Wall:
    """The wall of this machine; none at all with the operator's consent.

    Raises:
        SandboxError: there is no wall, and no consent.
    """
    if unsandboxed_allowed():
        return Unwalled()
    raise SandboxError(f"no sandbox; {UNSANDBOXED}=1 does without one")
