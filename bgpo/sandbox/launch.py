"""What a wall is to a sandbox: how to start the runner behind it."""

from __future__ import annotations

import compileall
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from bgpo.sandbox import inside
from bgpo.sandbox.limits import Limits

INSIDE = Path(inside.__file__).parent
START = "start.py"
ENVIRONMENT = {
    "HOME": "/tmp",  # noqa: S108 - the sandbox's own
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",  # a thread each for every core would use up the processes of a task
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": "/usr/bin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""All that a sandbox's environment holds."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A command that runs the runner on standard input, and what it needs."""

    command: list[str]
    folder: str
    """Where tasks have their files, as the runner sees it."""
    paths: list[str]
    """Entries of sys.path for third-party modules, as the runner sees them."""
    fds: tuple[int, ...] = ()
    environment: dict[str, str] = field(default_factory=lambda: dict(ENVIRONMENT))


class Wall(Protocol):
    """Contains processes. `name` says how; `contained` is False where there is no wall at all."""

    name: str
    contained: bool

    def launch(self, limits: Limits) -> AbstractContextManager[Launch]:
        """A command; what it uses exists until the context ends, which is after the sandbox's end."""
        ...


class Unwalled:
    """No wall: a plain process with resource limits. It may do what this user may, hence only with consent."""

    name = "none (BGPO_ALLOW_UNSANDBOXED=1)"
    contained = False

    @contextmanager
    def launch(self, limits: Limits) -> Iterator[Launch]:
        """The runner in a temporary folder."""
        with TemporaryDirectory(prefix="bgpo-sandbox-", ignore_cleanup_errors=True) as folder:
            command = [sys.executable, "-I", "-S", str(INSIDE / START)]
            yield Launch(command, folder, site_folders())


def compile_inside() -> None:
    """Cache the bytecode of what runs inside, where nothing can be written: it saves a start its largest part.

    Installing a wheel has done so, and then there may be no right to write.
    """
    compileall.compile_dir(INSIDE, quiet=2)


def site_folders() -> list[str]:
    """The folders of this interpreter's third-party modules."""
    return [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"} and Path(path).is_dir()]
