"""One part of `gpu_check` in a process of its own: `python -m benchmarks.gpu.part NAME PRESET FILE`.

Rows are appended to FILE as JSON lines while the part goes on, so those measured before a crash or a time limit count.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu import standin
from benchmarks.gpu.sizes import SIZES, Sizes

PARTS = {"tests": "suite", "update": "update", "rollout": "rollout", "rl": "small_rl"}
"""Name of each part and its module."""


def main() -> None:
    """Run one part."""
    name, preset, file = sys.argv[1:]
    standin.install()
    measure: Callable[[Sizes, Callable[[dict[str, Any]], None]], None]
    measure = import_module(f"benchmarks.gpu.{PARTS[name]}").measure
    with Path(file).open("a") as out:

        def emit(row: dict[str, Any]) -> None:
            out.write(json.dumps(row) + "\n")
            out.flush()

        measure(SIZES[preset], emit)


if __name__ == "__main__":
    main()
