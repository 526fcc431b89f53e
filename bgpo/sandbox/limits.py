"""How much a sandbox may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds. `seconds` and `memory` are those of one task unless it names less; the rest is the sandbox's."""

    seconds: float = 120.0
    """Wall time of a task; processor time of each of its processes is bounded by it too."""
    memory: int = 2 * 2**30
    """Bytes that a task may use beside what was loaded before it: in each process, and in all together."""
    disk: int = 2**30
    """Bytes of all files: of /tmp, and of any single one."""
    processes: int = 32
    """Processes and threads of the sandbox."""
    output: int = 2**20
    """Bytes that a task may write to stdout and stderr together."""

    def __post_init__(self) -> None:
        for name in ("seconds", "memory", "disk", "processes", "output"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
