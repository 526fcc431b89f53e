"""An environment for each tested release of `openai`, made once under .venv-clients/ and used again.

Each is a plain venv: the releases exclude one another, and need other HTTP libraries. Without an index to install from
the tests fail; nothing is skipped. To make one again, delete its folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

RELEASES = ("1.109.1", "2.30.0", "3.54.0")
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-clients"
CONSTRAINTS = Path(__file__).parent / "clients" / "constraints.txt"


def interpreter(release: str) -> Path:
    """The Python of that release's environment."""
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f"{release}.lock").open("w") as lock:  # test processes side by side make it once
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = FOLDER / release
        stamp = folder / "constraints.txt"  # written last, and compared: other versions make another environment
        if not stamp.is_file() or stamp.read_bytes() != CONSTRAINTS.read_bytes():
            _make(folder, release)
            shutil.copyfile(CONSTRAINTS, stamp)
    return folder / "bin" / "python"


def _make(folder: Path, release: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _run(sys.executable, "-m", "venv", str(folder))
    python = str(folder / "bin" / "python")
    _run(python, "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS), f"openai=={release}")


def _run(*command: str) -> None:
    env = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=env)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}")
