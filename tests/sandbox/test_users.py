"""The wall as root and as an ordinary user, whichever this process is not: other stages, the same promise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import bgpo
from bgpo.sandbox import Wall

USER = 12345
PROBE = """
import os
from bgpo.sandbox import Limits, Pool, find_wall
assert os.getuid() == {user}
wall = find_wall()
with Pool(wall, Limits(seconds=20), 1) as pool, pool.take() as sandbox:
    print(sandbox.run("probe:echo", {{"a": 1}}, stdin=b"text").value, wall.contained)
"""


def interpreter() -> str:
    """One that every user may run."""
    for path in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        probe = "import json, sys; open(sys.executable).close(); sys.exit(sys.version_info < (3, 11))"
        command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--", path, "-c", probe]
        if os.path.exists(path) and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return path
    pytest.skip("no Python of 3.11 or newer that another user may run")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; the other tests show this user")
def test_the_wall_holds_for_an_ordinary_user(bubblewrap: Wall) -> None:
    python = interpreter()
    folder = Path(tempfile.mkdtemp(prefix="bgpo-user-"))  # pytest's own folders are its user's alone
    shutil.copytree(Path(bgpo.__file__).parent / "sandbox", folder / "bgpo" / "sandbox")
    for name in ("__init__.py", "errors.py"):
        shutil.copy(Path(bgpo.__file__).parent / name, folder / "bgpo" / name)
    try:
        folder.chmod(0o755)
        command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--", python, "-c"]
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder)}
        done = subprocess.run(
            [*command, PROBE.format(user=USER)], env=env, cwd="/", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "[{'a': 1}, 'text', 0] True\n"
    finally:
        shutil.rmtree(folder)
