"""Whether foreign code can run on this worker: found out once at its start, for its log.

A worker without a sandbox still takes jobs; only those with a `python` or `code` grader fail on it, with the same
reason. A thread, so that a wall that is slow to start holds up nothing.
"""

from __future__ import annotations

import threading

import structlog

from bgpo.sandbox import SandboxError, find_wall

_log = structlog.get_logger(__name__)


class SandboxCheck(threading.Thread):
    """Attacks the wall once. `problem` is why there is none; None before the end, and when it holds."""

    def __init__(self) -> None:
        super().__init__(name="sandbox-check", daemon=True)
        self.problem: str | None = None

    def run(self) -> None:
        try:
            wall = find_wall()
        except SandboxError as error:
            self.problem = error.message
            _log.warning("no sandbox: jobs with a python or code grader fail here", reason=error.message)
        else:
            if wall.contained:
                _log.info("sandbox holds", wall=wall.name)
            else:
                _log.warning("programs of graders run without a wall", wall=wall.name)
