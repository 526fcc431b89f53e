"""Process trees for the tests of what must not survive: they grow in every way that could hide a process."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

TREE = Path(__file__)
MARK = "BGPO_TEST_MARK"
PATIENCE_S = 30.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Poll until the condition holds; fails with `what` when that takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that run, zombies aside."""
    alive = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
        except psutil.NoSuchProcess:
            continue
    return alive


def marked(mark: str) -> list[psutil.Process]:
    """The living processes with the mark in their environment, wardens included."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue
    return living(found)


def _sleeper(before: str = "", env: bool = True) -> int:
    """Start a process that does nothing for long; `before` is done first, in it."""
    pid = os.fork()
    if pid == 0:
        if before == "session":
            os.setsid()
        os.execve("/bin/sleep", ["sleep", "600"], dict(os.environ) if env else {})  # noqa: S606
    return pid


def _daemon() -> int:
    """A daemon by the book: forked twice, in a session of its own, with nothing of ours open or in its environment."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        for fd in range(3, 64):
            if fd != writer and os.path.exists(f"/proc/self/fd/{fd}"):
                os.close(fd)
        pid = _sleeper(env=False)
        os.write(writer, str(pid).encode())
        os._exit(0)
    pid = int(os.read(reader, 32))
    os.wait()
    return pid


def _hop() -> None:
    """Always another process: each forks one in a new session and ends."""
    while True:
        if os.fork():
            os._exit(0)
        os.setsid()


def _grow(depth: int) -> None:
    """Three children each, whose children do the same, over and over."""
    while True:
        for _ in range(3):
            if depth and os.fork() == 0:
                _grow(depth - 1)
        time.sleep(600 if depth == 0 else 0.01)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            continue


def main() -> None:
    """`trees.py MODE --record-fd N`: the trainer's part."""
    mode, fd = sys.argv[1], int(sys.argv[sys.argv.index("--record-fd") + 1])

    def say(**record: object) -> None:
        os.write(fd, json.dumps(record).encode() + b"\n")

    if mode == "exit":
        os._exit(int(sys.argv[2]))
    if mode == "die":
        os.kill(os.getpid(), int(sys.argv[2]))
    pids = [os.getpid()]
    if mode in ("hydra", "leaves"):
        pids += [_sleeper(), _sleeper("session"), _sleeper("session", env=False), _daemon(), _sleeper()]
        os.kill(pids[-1], signal.SIGSTOP)
        os.waitpid(pids[-1], os.WUNTRACED)  # of two pending signals, the kernel delivers the lower number first
    if mode == "hops" and os.fork() == 0:
        _hop()
    if mode == "grows" and os.fork() == 0:
        _grow(3)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(pids=pids)
    if mode == "leaves":
        sys.stdin.readline()
        os._exit(3)
    time.sleep(600)


if __name__ == "__main__":
    main()
