"""Sandboxes: foreign code in processes that can neither reach nor harm anything outside. Torch-free, Linux only.

    with Sandbox(find_wall(), Limits(seconds=5)) as sandbox:
        result = sandbox.run("python_grade:grade", {"source": "..."})

`Wall` is what contains a process (bubblewrap), `Sandbox` a contained process that runs tasks, `Pool` sandboxes that are
started ahead and used once. docs/sandbox.md says what is covered and what is not.
"""

from __future__ import annotations

from bgpo.errors import SandboxError
from bgpo.sandbox.limits import Limits
from bgpo.sandbox.pool import Pool
from bgpo.sandbox.sandbox import Result, Sandbox
from bgpo.sandbox.wall import Wall, find_wall

__all__ = ["Limits", "Pool", "Result", "Sandbox", "SandboxError", "Wall", "find_wall"]
