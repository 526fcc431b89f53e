"""What a task left: processes and files. The standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time

_PATIENCE_S = 5.0


def end_orphans(kept: frozenset[int], *, everyone: bool) -> bool:
    """Kill and collect this process's children but for `kept`, and the children they leave, until there are none.

    Args:
        everyone: this is process 1 of a namespace and keeps nobody: one signal reaches all, also those being forked.

    Returns:
        False when some could not be ended in time.
    """
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        if everyone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            _collect_all()
            continue
        orphans = [pid for pid in _children() if pid not in kept]
        if not orphans:
            return True
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in orphans:
            _collect(pid, end)
    return False


def empty(folder: str, kept: set[str]) -> bool:
    """Remove all in a folder but the names in `kept`, whatever a task made of it.

    A directory's content is moved up before the directory goes, so that no depth and no length of a path is too much.

    Returns:
        False when that was not possible.
    """
    end = time.monotonic() + _PATIENCE_S
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    moved = 0
    try:
        while names := [name for name in os.listdir(top) if name not in kept]:
            for name in names:
                try:
                    os.unlink(name, dir_fd=top)
                except (IsADirectoryError, PermissionError):
                    moved = _dissolve(top, name, moved)
            if time.monotonic() > end:
                return False
    except OSError:
        return False
    finally:
        os.close(top)
    return True


def remove(folder: str) -> bool:
    """Remove a folder with all in it; False when that was not possible."""
    with contextlib.suppress(OSError):
        os.chmod(folder, 0o700)
        if empty(folder, set()):
            os.rmdir(folder)
            return True
    return False


def _dissolve(top: int, name: str, moved: int) -> int:
    os.chmod(name, 0o700, dir_fd=top)
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
    try:
        for each in os.listdir(inner):
            moved += 1
            if stat.S_ISDIR(os.stat(each, dir_fd=inner, follow_symlinks=False).st_mode):
                os.chmod(each, 0o700, dir_fd=inner)  # a directory that moves is written to
            os.rename(each, f".moved-{moved}", src_dir_fd=inner, dst_dir_fd=top)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)
    return moved


def _children() -> list[int]:
    me, found = os.getpid(), []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == me:
                    found.append(int(name))
    return found


def _collect(pid: int, end: float) -> None:
    """Wait for a killed child, which may be held up in the kernel for a while."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < end:
            time.sleep(0.0005)


def _collect_all() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    time.sleep(0.0002)
