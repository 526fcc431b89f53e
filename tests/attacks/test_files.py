"""Attacks on files: those of the machine and the service, and the sandbox's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bgpo.sandbox import Sandbox
from bgpo.sandbox.launch import ENVIRONMENT
from tests.attacks.conftest import assert_stopped, inside

ABSENT = (FileNotFoundError, PermissionError, NotADirectoryError)


def read(path: str) -> str:
    with open(path, "rb") as file:
        return repr(file.read(100))


def listing(path: str) -> list[str]:
    import os

    return os.listdir(path)


def write(path: str) -> str:
    with open(path, "wb") as file:
        file.write(b"x")
    return path


@pytest.mark.parametrize("path", ["/etc/passwd", "/etc/shadow", "/etc/hostname", __file__])
def test_files_of_the_machine_cannot_be_read(sandbox: Sandbox, path: str) -> None:
    assert os.path.exists(path)
    assert_stopped(inside(sandbox, read, path=path), *ABSENT)


@pytest.mark.parametrize("name", ["bgpo.db", "artifacts/model.safetensors", "work/job-2/spec.json", ".bgpo/api-key"])
def test_files_of_the_service_cannot_be_read(sandbox: Sandbox, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("secret")
    path.chmod(0o644)
    for folder in (path.parent, *path.parent.parents):
        if folder.is_relative_to(tmp_path.parents[1]):
            folder.chmod(0o755)  # so that it is the wall that stops it
    assert "secret" in read(str(path))
    assert_stopped(inside(sandbox, read, path=str(path)), *ABSENT)


@pytest.mark.parametrize(
    "path", ["/home", "/var", "/etc/ssl", "/boot", "/mnt", "/opt", "/srv", "/sys", "/run", "/usr/bin", "/usr/sbin"]
)
def test_folders_of_the_machine_are_not_there(sandbox: Sandbox, path: str) -> None:
    result = inside(sandbox, listing, path=path)
    if result.ended == "returned":  # a parent of the interpreter, with nothing else in it
        assert len(result.value) == 1, result.value
    else:
        assert_stopped(result, *ABSENT)


@pytest.mark.parametrize("entry", ["environ", "mem", "maps", "fd", "root", "cwd", "exe", "ns/net"])
@pytest.mark.parametrize("process", ["1", "service"])
def test_processes_cannot_be_looked_into(sandbox: Sandbox, process: str, entry: str) -> None:
    """Process 1 is the runner; the service's processes are not in sight at all."""
    number = str(os.getpid()) if process == "service" else process

    def look(path: str) -> Any:
        import os

        if path.endswith("/fd"):
            return os.listdir(path)
        if path.endswith(("/root", "/cwd", "/exe", "/net")):
            return os.readlink(path)
        with open(path, "rb") as file:
            return repr(file.read(10))

    result = inside(sandbox, look, path=f"/proc/{number}/{entry}")
    assert_stopped(result, *ABSENT)


def test_the_root_of_another_process_leads_nowhere(sandbox: Sandbox) -> None:
    assert_stopped(inside(sandbox, read, path="/proc/1/root/etc/passwd"), *ABSENT)


def test_the_environment_tells_nothing(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGPO_API_KEY", "secret")

    def environment() -> dict[str, str]:
        import os

        return dict(os.environ)

    found = inside(sandbox, environment).value
    assert set(found) <= {*ENVIRONMENT, "PWD", "TMPDIR", "LC_CTYPE"}


def test_no_process_shows_arguments_of_the_service(sandbox: Sandbox) -> None:
    def command_lines() -> list[str]:
        import os

        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    found.append(file.read().decode())
        return found

    for line in inside(sandbox, command_lines).value:
        assert line.split("\0")[1:4] == ["-I", "-S", "/runner/start.py"]


@pytest.mark.parametrize(
    "path",
    [
        "/written",
        "/usr/written",
        "/usr/lib/written",
        "/dev/written",
        "/dev/pts/written",
        "/etc/passwd",
        "/site/0/written.py",
        "/runner/tasks/probe.py",
        "/runner/runner.py",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sysrq-trigger",
        "/proc/self/uid_map",
        "/proc/1/oom_score_adj",
        "/proc/1/mem",
    ],
)
def test_nothing_outside_the_working_folders_can_be_written(sandbox: Sandbox, path: str) -> None:
    result = inside(sandbox, write, path=path)
    assert result.ended == "raised", result.value
    assert result.message.split(":")[0] in {"PermissionError", "OSError", "FileNotFoundError"}, result.message


def chmod_runner() -> None:
    import os

    os.chmod("/runner/runner.py", 0o777)


def unlink_runner() -> None:
    import os

    os.unlink("/runner/runner.py")


def rename_runner() -> None:
    import os

    os.rename("/runner/tasks/probe.py", "/runner/tasks/other.py")


def hard_link_to_the_runner() -> None:
    import os

    os.link("/runner/runner.py", "mine")


def device() -> None:
    import os
    import stat

    os.mknod("disk", 0o666 | stat.S_IFBLK, os.makedev(254, 0))


@pytest.mark.parametrize(
    "attack",
    [chmod_runner, unlink_runner, rename_runner, hard_link_to_the_runner, device],
    ids=lambda each: each.__name__,
)
def test_the_runner_cannot_be_changed_and_devices_not_made(sandbox: Sandbox, attack: Callable[..., Any]) -> None:
    result = inside(sandbox, attack)
    assert result.ended == "raised", result.value
    assert result.message.split(":")[0] in {"PermissionError", "OSError"}, result.message


def test_a_symbolic_link_leads_to_files_of_the_sandbox(sandbox: Sandbox, tmp_path: Path) -> None:
    def follow(target: str) -> str:
        import os

        os.symlink(target, "link")
        with open("link") as file:
            return file.read()

    target = tmp_path / "target"
    target.write_text("secret")
    assert_stopped(inside(sandbox, follow, target=str(target)), *ABSENT)
    assert_stopped(inside(sandbox, follow, target="../../../../../../etc/passwd"), *ABSENT)


def test_cleaning_follows_no_link(sandbox: Sandbox) -> None:
    def trap() -> None:
        import os

        os.symlink("/runner", "folder")
        os.mkdir("locked")
        os.symlink("/runner/tasks", "locked/inner")
        os.chmod("locked", 0)
        os.mkfifo("pipe")
        folder = "."
        for _ in range(300):  # longer than a path may be
            folder = os.path.join(folder, "d" * 100)
            os.mkdir("d" * 100)
            os.chdir("d" * 100)

    assert inside(sandbox, trap).ended == "returned"
    assert len(inside(sandbox, listing, path="/tmp").value) == 1  # the folder of the task that looks
    assert "runner.py" in inside(sandbox, listing, path="/runner").value


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_nothing_is_left_for_the_next_task(sandbox: Sandbox, folder: str) -> None:
    def leave(path: str) -> None:
        import os

        os.makedirs(path + "/deep/er")
        with open(path + "/deep/file", "w") as file:
            file.write("note")

    assert inside(sandbox, leave, path=f"{folder}/left").ended == "returned"
    assert "left" not in inside(sandbox, listing, path=folder).value


def test_a_setuid_program_gives_no_rights(sandbox: Sandbox) -> None:
    def become() -> list[int]:
        import os
        import shutil
        import subprocess
        import sys

        os.makedirs("bin")
        shutil.copy(sys.executable, "bin/python")
        os.chmod("bin/python", 0o6755)
        code = "import os; print(os.geteuid(), os.getegid())"
        return [int(word) for word in subprocess.check_output(["bin/python", "-I", "-S", "-c", code]).split()]

    result = inside(sandbox, become)
    # bin/python may not find its library; what counts is that it is nobody, or did not run.
    assert result.value == [65534, 65534] or result.ended == "raised", result


def test_no_mount_honours_setuid_or_devices(sandbox: Sandbox) -> None:
    def flags() -> dict[str, list[str]]:
        with open("/proc/self/mounts") as file:
            rows = [line.split() for line in file]
        return {row[1]: row[3].split(",") for row in rows}

    mounts = inside(sandbox, flags).value
    assert {"/", "/tmp", "/runner", "/usr/lib"} <= set(mounts)
    for place, options in mounts.items():
        assert "nosuid" in options, place
        assert "nodev" in options or place.startswith(("/dev/", "/proc")), place
