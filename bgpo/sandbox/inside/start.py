"""`python -I -S start.py`: begin in a script too small to matter, because scripts, unlike modules, are never cached."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bgpo.sandbox.inside.runner import main
else:
    from runner import main

main()
os._exit(0)
