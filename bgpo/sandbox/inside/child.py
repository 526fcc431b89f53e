"""The process of one task: limits, a working folder of its own, then the task, whose value goes through a pipe.

The value is as trustworthy as the code that runs in this process: a task that executes foreign code must not be the one
that judges it. The standard library only.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys

TYPE_CHECKING = False  # typing takes long to import
if TYPE_CHECKING:
    from typing import Any, NoReturn

MAX_MESSAGE = 2_000
MAX_TRACEBACK = 20_000


def run(request: dict[str, Any], fds: list[int], streams: tuple[int, int, int], reply: int, folder: str) -> NoReturn:
    """Run a task in this process, which has been forked for it; fds, streams and reply are all it keeps open."""
    status = 70  # EX_SOFTWARE: it did not come to the task
    try:
        _separate(fds, streams, reply, folder)
        _limit(request["memory"], request["seconds"])
        status, text = _outcome(request["task"], request["arguments"], fds)
        with contextlib.suppress(BaseException):  # the pipes may be broken, the streams replaced by the task
            sys.stdout.flush()
            sys.stderr.flush()
        _write(reply, text.encode(errors="replace"))
    finally:
        os._exit(status)  # no clean-up: threads or exit handlers of a task cannot hold its end up


def _separate(fds: list[int], streams: tuple[int, int, int], reply: int, folder: str) -> None:
    """A session, streams and a folder of its own, signals as a new program has them, and nothing of the parent open."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    _close_all_but({0, 1, 2, reply, *fds})
    os.chdir(folder)
    os.environ["HOME"] = os.environ["TMPDIR"] = folder


def _outcome(task: str, arguments: Any, fds: list[int]) -> tuple[int, str]:
    """Exit status and reply of a task."""
    try:
        module, _, function = task.partition(":")
        value = getattr(importlib.import_module(f"tasks.{module}"), function)(arguments, fds)
        return 0, json.dumps({"value": value})
    except SystemExit as error:
        return _exit_status(error), ""
    except BaseException as error:  # whatever a task raises is its result
        return 0, json.dumps({"raised": _described(error)})


def _limit(memory: int, seconds: float) -> None:
    """Limit this process: `memory` bytes beside what it has, and processor time, which begins with it.

    The seconds more leave the deadline the first word, and the program that catches SIGXCPU one to be killed in.
    """
    size = _virtual_size() + memory
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    processor = int(seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (processor, processor + 1))


def _described(error: BaseException) -> dict[str, Any]:
    try:
        message = f"{type(error).__name__}: {error}"
    except BaseException:  # a task may raise what cannot be printed
        message = type(error).__name__
    try:
        import traceback  # most tasks do without

        lines = "".join(traceback.format_exception(error))
    except BaseException:  # ... nor shown; or there is no descriptor or memory left to load the module
        lines = message
    is_memory = isinstance(error, MemoryError)
    return {"message": message[:MAX_MESSAGE], "traceback": lines[-MAX_TRACEBACK:], "memory": is_memory}


def _exit_status(error: SystemExit) -> int:
    """As the interpreter does: a number, nothing for success, or a text for stderr."""
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    with contextlib.suppress(BaseException):  # str() of it is the task's code
        print(error.code, file=sys.stderr)  # noqa: T201
    return 1


def _virtual_size() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _close_all_but(kept: set[int]) -> None:
    low = 0
    for fd in [*sorted(kept), os.sysconf("SC_OPEN_MAX")]:
        if low < fd:  # an empty range would close everything
            os.closerange(low, fd)
        low = fd + 1


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
