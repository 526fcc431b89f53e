"""A sandbox: a runner behind a wall, and the thread that starts, watches and ends it.

The runner inside enforces each task's limits; this side trusts it with none of them: a task that is late here, or
memory beyond the limit, ends the whole sandbox. The thread that starts the wall also stays with it, because the kernel
ends the wall with the thread that started it (`--die-with-parent`), not with the process.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Literal, Self

from bgpo.errors import SandboxError
from bgpo.sandbox.inside.channel import Channel, ChannelError
from bgpo.sandbox.launch import Launch, Wall
from bgpo.sandbox.limits import Limits
from bgpo.sandbox.processes import descendants, memory

START_S = 120.0
"""Seconds a sandbox may take to start, imports included: a cold disk and a busy machine are no reason to refuse."""
GRACE_S = 5.0
"""Seconds that the runner has to end a late task."""
_LOOK_S = 0.2
_BASE_BYTES = 64 * 2**20
"""What wall and interpreter hold without any task, with room; the modules imported ahead are measured."""

Ended = Literal["returned", "raised", "exited", "timeout", "memory", "output", "lost"]


@dataclass(frozen=True, slots=True)
class Result:
    """How a task ended.

    returned: with a value. raised: with an exception (`message`, `traceback`). exited: the process ended by itself
    without a value (`status`, negative for a signal). timeout, memory, output: a limit. lost: the sandbox is gone.
    """

    ended: Ended
    value: Any = None
    message: str = ""
    traceback: str = ""
    stdout: bytes = b""
    stderr: bytes = b""
    status: int | None = None
    seconds: float = 0.0


@dataclass(slots=True)
class _Waiting:
    """A task that the runner has been given."""

    deadline: float
    memory: int
    done: threading.Event = field(default_factory=threading.Event)
    message: dict[str, Any] = field(default_factory=dict)


class Sandbox:
    """Runs tasks, several at a time if several threads ask. A context manager. It ends with `close`, or by itself."""

    def __init__(self, wall: Wall, limits: Limits, modules: Sequence[str] = ()) -> None:
        """Start it, and wait until it is ready.

        Args:
            modules: imported before the first task, so that each task finds them loaded.

        Raises:
            SandboxError: it does not start.
        """
        self._wall, self._limits, self._modules = wall, limits, list(modules)
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}
        self._numbers = itertools.count(1)
        self._closing = self._ended = False
        self._problem = ""
        self._ready = threading.Event()
        self._runner: int | None = None
        self._base = _BASE_BYTES
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        ours, self._theirs = socket.socketpair()
        self._channel = Channel(ours)
        self._thread = threading.Thread(target=self._keep, name="sandbox", daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._ended:
            self.close()
            raise SandboxError(f"no sandbox could be started ({wall.name}): {self._problem or 'it ended at once'}")

    @property
    def alive(self) -> bool:
        """Whether it can still run tasks."""
        return not self._ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        task: str,
        arguments: dict[str, Any],
        *,
        seconds: float | None = None,
        memory: int | None = None,
        fds: Sequence[int] = (),
        stdin: bytes = b"",
    ) -> Result:
        """Run `module:function` of the tasks with JSON arguments and copies of descriptors, and wait for its end.

        Raises:
            ValueError: the arguments are no JSON, or too long.
        """
        seconds = min(seconds or self._limits.seconds, self._limits.seconds)
        bound = min(memory or self._limits.memory, self._limits.memory)
        waiting = _Waiting(time.monotonic() + seconds + GRACE_S, bound)
        number = next(self._numbers)
        request = {
            "id": number,
            "task": task,
            "arguments": arguments,
            "seconds": seconds,
            "memory": bound,
            "output": self._limits.output,
            "stdin": bool(stdin),
        }
        with self._lock:
            if self._ended:
                return Result("lost", message=self._problem or "the sandbox has been closed")
            self._waiting[number] = waiting
            os.eventfd_write(self._wake, 1)
        try:
            self._send(request, fds, stdin)
        except (ValueError, TypeError):
            self._waiting.pop(number, None)
            raise
        waiting.done.wait()
        return self._result(waiting.message)

    def close(self) -> None:
        """End it, and with it everything inside; tasks that still run are lost."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            if not self._ended:
                os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._channel.close()
        os.close(self._wake)

    def _send(self, request: dict[str, Any], fds: Sequence[int], stdin: bytes) -> None:
        with contextlib.ExitStack() as stack:
            if stdin:
                reading = stack.enter_context(_input(stdin))
                fds = (reading.fileno(), *fds)
            with contextlib.suppress(OSError):  # it has just ended; the keeper says how
                self._channel.send(request, tuple(fds))

    def _result(self, message: dict[str, Any]) -> Result:
        if "lost" in message:
            return Result(message["lost"], message=message["message"])
        if "failed" in message:
            return Result("lost", message=message["failed"])
        ended, value, text, trace = _outcome(message)
        return Result(
            ended,
            value,
            text,
            trace,
            base64.b64decode(message["stdout"]),
            base64.b64decode(message["stderr"]),
            message["status"],
            message["seconds"],
        )

    # The keeper: everything below runs in the sandbox's own thread.

    def _keep(self) -> None:
        ended: Ended = "lost"
        with contextlib.ExitStack() as stack:
            try:
                launch = stack.enter_context(self._wall.launch(self._limits))
                errors = stack.enter_context(_ErrorPipe())
                process = self._start(launch, errors)
            except (OSError, SandboxError) as error:
                self._problem = str(error)
            else:
                try:
                    self._set_up(launch, process, errors)
                    self._ready.set()
                    ended = self._watch(process)
                except _Gone as gone:
                    self._problem = self._problem or gone.args[0]
                finally:
                    self._end(process)
                    if not self._ready.is_set():
                        self._problem = errors.text() or self._problem
            finally:
                self._theirs.close()
                self._lose(ended)
                self._ready.set()

    def _start(self, launch: Launch, errors: _ErrorPipe) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                launch.command,
                env=launch.environment,
                stdin=self._theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=errors.writing,
                pass_fds=launch.fds,
                cwd="/",
                start_new_session=True,  # an interrupt at the terminal is for us alone
            )
        finally:
            self._theirs.close()
            errors.started()

    def _set_up(self, launch: Launch, process: subprocess.Popen[bytes], errors: _ErrorPipe) -> None:
        setup = {
            "folder": launch.folder,
            "paths": launch.paths,
            "modules": self._modules,
            "walled": self._wall.contained,
            "disk": self._limits.disk,
            "processes": self._limits.processes,
        }
        try:
            self._channel.send(setup)
        except OSError as error:
            raise _Gone("it ended at once") from error
        end = time.monotonic() + START_S
        while not (messages := self._receive(max(0.0, end - time.monotonic()), errors)):
            if time.monotonic() >= end:
                raise _Gone(f"it was not ready within {START_S:g} s")
            if self._closing:
                raise _Gone("closed")
        if "error" in messages[0]:
            raise _Gone(messages[0]["error"])
        pids = descendants(process.pid)
        self._runner = pids[-1]
        self._base = _BASE_BYTES + memory(pids, 0)

    def _receive(self, seconds: float | None, errors: _ErrorPipe | None = None) -> list[dict[str, Any]]:
        """What has come from the runner within the time. Raises _Gone."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        if errors:
            poll.register(errors.reading, select.POLLIN)
        for fd, _ in poll.poll(None if seconds is None else seconds * 1000):
            if fd == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            elif errors and fd == errors.reading:
                errors.read()
            else:
                try:
                    return [message for message, _ in self._channel.receive()]
                except EOFError:
                    raise _Gone("the sandbox has ended") from None
                except ChannelError as error:
                    raise _Gone(f"the sandbox sent {error}") from None
        return []

    def _watch(self, process: subprocess.Popen[bytes]) -> Ended:
        """Until the sandbox must end: why its tasks end then."""
        next_look = 0.0
        while not self._closing:
            for message in self._receive(_LOOK_S if self._waiting else None):
                if waiting := self._waiting.pop(message["id"], None):
                    waiting.message = message
                    waiting.done.set()
            now = time.monotonic()
            if now < next_look:
                continue
            next_look = now + _LOOK_S
            with self._lock:
                current = list(self._waiting.values())
            if any(now > waiting.deadline for waiting in current):
                self._problem = "the sandbox did not end a task in time"
                return "timeout"
            limit = self._base + self._limits.disk + sum(waiting.memory for waiting in current)
            if current and (used := memory(descendants(process.pid), limit)) > limit:
                self._problem = f"{used >> 20} MiB in use, {limit >> 20} MiB allowed"
                return "memory"
        self._problem = "the sandbox has been closed"
        return "lost"

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End the runner, which takes everything inside with it; the wall's processes end when that is done."""
        with contextlib.suppress(OSError):
            self._channel.socket.shutdown(socket.SHUT_RDWR)
        if self._wall.contained and self._runner in descendants(process.pid):
            _kill([self._runner])
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            _kill(descendants(process.pid)[::-1])
            process.wait()

    def _lose(self, ended: Ended) -> None:
        """Answer whoever still waits."""
        with self._lock:
            self._ended = True
            waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            each.message = {"lost": ended, "message": self._problem}
            each.done.set()


class _Gone(Exception):
    """The runner is gone, or useless."""


class _ErrorPipe:
    """What wall and runner write to stderr while they start; afterwards the runner has no stderr."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._data = b""
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.started()
        os.close(self.reading)

    def started(self) -> None:
        """Close the writing end, which the processes now have."""
        if self._open:
            self._open = False
            os.close(self.writing)

    def read(self) -> None:
        """Keep the end of what is there."""
        with contextlib.suppress(BlockingIOError):
            self._data = (self._data + os.read(self.reading, 2**16))[-4096:]

    def text(self) -> str:
        """What they wrote."""
        self.read()
        return self._data.decode(errors="replace").strip()


def _outcome(message: dict[str, Any]) -> tuple[Ended, Any, str, str]:
    """How a task ended, by what the runner saw of it; its reply is not to be trusted."""
    killed, status = message["killed"], message["status"]
    if killed == "files":
        return "memory", None, "too many files", ""
    if killed:
        return killed, None, f"more {killed} than allowed" if killed == "output" else "out of time", ""
    if status == -signal.SIGXCPU:
        return "timeout", None, "out of processor time", ""
    try:
        reply = json.loads(message["reply"]) if message["reply"] and status == 0 else {}
        if "value" in reply:
            return "returned", reply["value"], "", ""
        if "raised" in reply:
            raised = reply["raised"]
            ended: Ended = "memory" if raised["memory"] is True else "raised"
            return ended, None, str(raised["message"]), str(raised["traceback"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "exited", None, "the task sent nonsense instead of a value", ""
    return "exited", None, f"ended with status {status}", ""


def _input(data: bytes) -> IO[bytes]:
    """A file in memory to read the data from."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as writing:
            writing.write(data)
        return open(f"/proc/self/fd/{fd}", "rb", buffering=0)  # read-only: the task cannot make it grow
    finally:
        os.close(fd)


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
