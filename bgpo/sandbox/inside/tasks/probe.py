"""Tasks that show what a sandbox does. The standard library only."""

from __future__ import annotations

import sys
from typing import Any


def echo(arguments: dict[str, Any], fds: list[int]) -> Any:
    """What came in: the arguments, standard input, the number of descriptors."""
    return [arguments, sys.stdin.read(), len(fds)]
