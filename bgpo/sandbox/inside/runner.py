"""The first process of a sandbox: forks one child per task, bounds it, collects its result, removes what it left.

Started by `start.py` with its control socket as standard input; the first message sets it up, each later one is a task.
It is process 1 of the sandbox's namespace, so that no signal from inside can end or stop it, and not dumpable, so that
no task can trace it or open its descriptors. It never interprets what a task sends: replies go to the outside as
text. It ends, and everything inside with it, when the outside closes the socket. The standard library only.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
import time
from binascii import b2a_base64

TYPE_CHECKING = False  # typing alone takes as long to import as all the rest
if TYPE_CHECKING:
    from typing import Any

    from bgpo.sandbox.inside import child, cleaning
    from bgpo.sandbox.inside.channel import Channel
else:
    import child
    import cleaning
    from channel import Channel

MAX_REPLY = 16 * 2**20
MAX_FILES = 16_384
"""Files of the sandbox: an empty one costs memory too, which the size of a tmpfs does not count."""
OPEN_FILES = 256
_LOOK_S = 0.1
_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 4, 36


class Running:
    """A task that has been started: its process, and the pipes that lead here."""

    def __init__(
        self, number: int, pid: int, pipes: tuple[int, int, int], request: dict[str, Any], folder: str
    ) -> None:
        self.number, self.pid, self.folder = number, pid, folder
        self.received = {fd: bytearray() for fd in pipes}
        self.stdout, self.stderr, self.reply = pipes
        self.output: int = request["output"]
        self.begin = time.monotonic()
        self.deadline: float = self.begin + request["seconds"]
        self.killed = ""

    def read(self, fd: int) -> bool:
        """Take what a pipe holds; False at its end."""
        try:
            data = os.read(fd, 2**16)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.received[fd] += data
        printed = len(self.received[self.stdout]) + len(self.received[self.stderr])
        if printed > self.output or len(self.received[self.reply]) > MAX_REPLY:
            self.kill("output")
        return bool(data)

    def drain(self) -> None:
        """Take what is left in the pipes of a process that has ended."""
        for fd in self.received:
            before = -1
            while before != len(self.received[fd]) and self.killed != "output":
                before = len(self.received[fd])
                self.read(fd)

    def kill(self, reason: str) -> None:
        """End it; the first reason counts."""
        self.killed = self.killed or reason
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # it may not have its group yet
            os.kill(self.pid, signal.SIGKILL)

    def result(self, status: int) -> dict[str, Any]:
        """What the outside is told."""
        return {
            "id": self.number,
            "killed": self.killed,
            "status": os.waitstatus_to_exitcode(status),
            "reply": self.received[self.reply][:MAX_REPLY].decode(errors="replace"),
            "stdout": self._text(self.stdout),
            "stderr": self._text(self.stderr),
            "seconds": time.monotonic() - self.begin,
        }

    def _text(self, fd: int) -> str:
        return b2a_base64(self.received[fd][: self.output], newline=False).decode()


class Runner:
    """The loop."""

    def __init__(self, channel: Channel, setup: dict[str, Any]) -> None:
        self._channel = channel
        self._base: str = setup["folder"]
        self._alone: bool = setup["walled"]  # nobody else's files or processes are in sight
        self._live: dict[int, Running] = {}  # by process
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        wake, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._woken = wake
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poll.register(wake, select.POLLIN)

    def serve(self) -> None:
        """Run tasks until the outside closes the socket."""
        while True:
            for fd, _ in self._poll.poll(self._patience()):
                if fd == self._channel.fileno():
                    try:
                        messages = self._channel.receive()
                    except EOFError:
                        return self._end()
                    for request, fds in messages:
                        self._begin(request, fds)
                elif fd == self._woken:
                    os.read(fd, 4096)
                else:
                    self._read(fd)
            self._look()
            self._reap()

    def _patience(self) -> float | None:
        """Milliseconds until something is due."""
        if not self._live:
            return None
        until: float = min(running.deadline for running in self._live.values()) - time.monotonic()
        return max(0.0, min(until, _LOOK_S)) * 1000 + 1

    def _begin(self, request: dict[str, Any], fds: list[int]) -> None:
        """Start a task, or say that a neighbour has used up what it needs."""
        folder = f"{self._base}/{request['id']}"
        opened: list[int] = []
        try:
            os.mkdir(folder, 0o700)
            stdin = fds.pop(0) if request["stdin"] else os.open(os.devnull, os.O_RDONLY)
            opened.append(stdin)
            for _ in range(3):
                opened += os.pipe()
            pid = os.fork()
        except OSError as error:
            for fd in (*fds, *opened):
                os.close(fd)
            cleaning.remove(folder)
            self._channel.send({"id": request["id"], "failed": f"the task could not be started: {error.strerror}"})
            return
        _, out, out_end, err, err_end, reply, reply_end = opened
        if pid == 0:
            child.run(request, fds, (stdin, out_end, err_end), reply_end, folder)
        for fd in (*fds, stdin, out_end, err_end, reply_end):
            os.close(fd)
        self._live[pid] = Running(request["id"], pid, (out, err, reply), request, folder)
        for reading in (out, err, reply):
            os.set_blocking(reading, False)
            self._poll.register(reading, select.POLLIN)

    def _read(self, fd: int) -> None:
        for running in self._live.values():
            if fd in running.received:
                if not running.read(fd):
                    self._poll.unregister(fd)  # the process may live on with a closed pipe
                return

    def _look(self) -> None:
        """Enforce what must be looked at."""
        if not self._live:
            return
        now = time.monotonic()
        for running in self._live.values():
            if now >= running.deadline:
                running.kill("timeout")
        if self._alone:
            files = os.statvfs(self._base)
            shared = os.statvfs("/dev/shm")  # noqa: S108 - the sandbox's own
            if sum(each.f_files - each.f_ffree for each in (files, shared)) > MAX_FILES:
                for running in self._live.values():
                    running.kill("files")

    def _reap(self) -> None:
        """Report the tasks that have ended, and collect orphans."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if found.si_pid in self._live:
                self._finish(self._live.pop(found.si_pid))
            else:
                os.waitpid(found.si_pid, 0)

    def _finish(self, running: Running) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the group, while its number is not free
            os.killpg(running.pid, signal.SIGKILL)
        _, status = os.waitpid(running.pid, 0)
        self._sweep()
        running.drain()
        result = running.result(status)
        for fd in running.received:
            with contextlib.suppress(KeyError):
                self._poll.unregister(fd)
            os.close(fd)
        self._clean(running.folder)
        self._channel.send(result)

    def _sweep(self) -> None:
        """End every process that belongs to no running task; else end the sandbox."""
        everyone = self._alone and os.getpid() == 1 and not self._live
        if not cleaning.end_orphans(frozenset(self._live), everyone=everyone):
            os._exit(1)

    def _clean(self, folder: str) -> None:
        """Remove what a task left in files; a sandbox that cannot be cleaned ends."""
        kept = {os.path.basename(running.folder) for running in self._live.values()}
        done = cleaning.empty(self._base, kept) if self._alone else cleaning.remove(folder)
        if self._alone and not self._live:
            done = cleaning.empty("/dev/shm", set()) and done  # noqa: S108 - the sandbox's own
        if not done:
            os._exit(1)

    def _end(self) -> None:
        for running in self._live.values():
            running.kill("lost")
        self._live.clear()
        cleaning.end_orphans(frozenset(), everyone=self._alone and os.getpid() == 1)


def harden(setup: dict[str, Any]) -> None:
    """Limits of this process and all that come from it; they can only be lowered from here."""
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, setup["disk"]),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ]
    if setup["walled"]:  # elsewhere it would count the user's other processes
        limits.append((resource.RLIMIT_NPROC, setup["processes"] + 1))
    for kind, limit in limits:
        resource.setrlimit(kind, (limit, limit))
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_DUMPABLE, 0), (_PR_SET_CHILD_SUBREAPER, 1)):
        if libc.prctl(option, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), f"prctl {option}")


def main() -> None:
    """Set up by the first message, answer, serve."""
    channel = Channel(socket.socket(fileno=os.dup(0)))
    messages: list[tuple[Any, list[int]]] = []
    while not messages:
        messages = channel.receive()
    ((setup, _),) = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # else process 1 could be interrupted from inside
    sys.path += setup["paths"]
    try:
        harden(setup)
        for module in setup["modules"]:
            importlib.import_module(module)
    except Exception as error:  # process boundary: the outside is told why there is no sandbox
        channel.send({"error": f"{type(error).__name__}: {error}"})
        return
    gc.collect()
    gc.freeze()  # else collections in the children would copy what they share
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
    runner = Runner(channel, setup)
    channel.send({"ready": True})
    runner.serve()
