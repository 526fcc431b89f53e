"""Whether foreign code can be contained on this machine, for /v1/capabilities: found out once, in a thread.

Graders of jobs run on workers, which look for themselves; this is about the ones that the API tries.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

from bgpo.sandbox import SandboxError, find_wall

SandboxState = Literal["checking", "holds", "none", "allowed_without"]


@dataclass(frozen=True)
class Found:
    """What is known so far."""

    state: SandboxState
    backend: str | None = None
    problem: str | None = None


class SandboxCheck:
    """Attacks the wall when first asked, and never keeps who asks waiting."""

    def __init__(self) -> None:
        self._found = Found("checking")
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def look(self) -> Found:
        """What is known by now."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._check, name="sandbox-check", daemon=True)
                self._thread.start()
        return self._found

    def _check(self) -> None:
        try:
            wall = find_wall()
        except SandboxError as error:
            self._found = Found("none", problem=error.message)
        else:
            self._found = Found("holds" if wall.contained else "allowed_without", wall.name)
