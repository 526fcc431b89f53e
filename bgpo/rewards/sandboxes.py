"""What the `python` and `code` graders share: the wall, limits within the operator's, a sandbox that is replaced.

No wall on this machine, and no consent of the operator to do without one, refuses the grader when it is compiled: when
a job is made, and again when its run starts.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from bgpo.errors import SandboxError, SpecError
from bgpo.rewards.grade import GradeFault
from bgpo.rewards.settings import SandboxSettings
from bgpo.sandbox.limits import Limits
from bgpo.sandbox.sandbox import Sandbox
from bgpo.sandbox.wall import Wall, find_wall

MEGABYTE = 2**20


def required_wall(type_: str) -> Wall:
    """The wall of this machine, or none where the operator consents to that.

    Raises:
        SpecError: there is none, and no consent.
    """
    try:
        return find_wall()
    except SandboxError as error:
        raise SpecError(
            f"a {type_} grader runs programs, and this machine has no sandbox for them: {error.message}", "type"
        ) from error


def limits(
    settings: SandboxSettings, seconds: float, memory_mb: int, output: int, disk_mb: int | None = None
) -> Limits:
    """What a grader asks for, within what the operator allows."""
    return Limits(
        seconds=min(seconds, settings.max_seconds),
        memory=min(memory_mb, settings.max_memory_mb) * MEGABYTE,
        disk=min(disk_mb or settings.max_disk_mb, settings.max_disk_mb) * MEGABYTE,
        processes=settings.max_processes,
        output=output,
    )


@dataclass
class SharedSandbox:
    """One sandbox for all samples of a grader: started at its first use, and again when it has died."""

    wall: Wall
    limits: Limits
    modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._sandbox: Sandbox | None = None

    def get(self) -> Sandbox:
        """The sandbox, alive a moment ago.

        Raises:
            GradeFault: it does not start.
        """
        with self._lock:
            if self._sandbox is None or not self._sandbox.alive:
                self._close()
                try:
                    self._sandbox = Sandbox(self.wall, self.limits, self.modules)
                except SandboxError as error:
                    raise GradeFault(
                        f"the sandbox does not start: {error.message}", "python_grader_server_error"
                    ) from error
            return self._sandbox

    def close(self) -> None:
        """End it; a later use would start another."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._sandbox is not None:
            self._sandbox.close()
            self._sandbox = None
