"""The program's side of the `code` grader: its host, which a checker calls, and the program as a script.

The host executes the program and answers requests over the socket it was given: a global by name, a call, an attribute,
an item. What a test expects never comes here; a checker in another sandbox compares (`code_check`). Lists, dictionaries
and sets that a call changes in place are sent back. Whatever answers here may be the program itself, which owns this
process: the checker believes nothing but plain values.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import IO, Any

from .values import MAX_LINE, decode, encode

MAX_ITEMS = 100_000
BEGIN = "begin\n"
"""A checker's first word on a socket."""
STARTED = "started\n"
"""Said before anything of the program runs: a sandbox that breaks afterwards was broken by the program."""


def host(arguments: dict[str, Any], fds: list[int]) -> None:
    """Execute `source` anew for each of the sockets `fds` over which a checker says BEGIN, one after the other.

    Each time in a process of its own, which answers until the checker closes the socket, and ends at the latest when
    the next one begins: what a program leaves of one test does not reach another.
    """
    _unlimited_integers()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    for fd, following in zip(fds, [*fds[1:], None], strict=True):
        if os.read(fd, len(BEGIN)) == BEGIN.encode():
            _serve(arguments["source"], fd, following)
        os.close(fd)


def _serve(source: str, fd: int, following: int | None) -> None:
    """Serve one socket in a process of its own, until that ends or the following socket has something to say."""
    lives, held = os.pipe()
    process = os.fork()
    if process == 0:
        os.setpgid(0, 0)
        server = Host(os.fdopen(fd), os.fdopen(os.dup(fd), "w"))
        server.greet()
        server.serve(source)
        os._exit(0)
    os.close(held)  # the process alone holds it now
    poll = select.poll()
    poll.register(lives, select.POLLIN)
    if following is not None:
        poll.register(following, select.POLLIN)
    poll.poll()
    os.close(lives)
    for kill in (os.killpg, os.kill):  # it may not have its group yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with socket.socket(fileno=os.dup(fd)) as end:  # others may hold copies of it
        end.shutdown(socket.SHUT_RDWR)


def script(arguments: dict[str, Any], fds: list[int]) -> None:
    """Execute `source` as the main module, having said so to the file `fds[0]`."""
    _unlimited_integers()
    os.write(fds[0], STARTED.encode())
    os.close(fds[0])
    code = compile(arguments["source"], "program.py", "exec")
    main = type(sys)("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    exec(code, main.__dict__)  # noqa: S102 - its purpose
    threading = sys.modules.get("threading")
    for thread in threading.enumerate() if threading else ():  # as the interpreter does at its end
        if thread is not threading.current_thread() and not thread.daemon:  # type: ignore[union-attr]
            thread.join()


def _unlimited_integers() -> None:
    """Large integers are answers too; time and memory are bounded."""
    sys.set_int_max_str_digits(0)


class Host:
    """Answers a checker's requests."""

    def __init__(self, requests: IO[str], replies: IO[str]) -> None:
        self._requests, self._replies = requests, replies
        self._objects: list[Any] = []
        self._globals: dict[str, Any] = {"__name__": "program", "__builtins__": builtins}

    def _keep(self, value: Any) -> Any:
        self._objects.append(value)
        return {"t": "remote", "v": len(self._objects) - 1}

    def greet(self) -> None:
        """Say that this process has started."""
        self._replies.write(STARTED)
        self._replies.flush()

    def serve(self, source: str) -> None:
        """Execute the program, then answer until the checker ends."""
        self._reply(lambda: exec(compile(source, "program.py", "exec"), self._globals))  # noqa: S102 - its purpose
        for line in self._requests:
            operation, *arguments = json.loads(line)
            self._reply(lambda o=operation, a=arguments: getattr(self, f"_do_{o}")(*a))  # type: ignore[misc]

    def _reply(self, work: Callable[[], Any]) -> None:
        try:
            text = json.dumps({"value": encode(work(), self._keep)})
            if len(text) > MAX_LINE:
                raise ValueError(f"a value of more than {MAX_LINE} bytes")
        except BaseException as error:  # SystemExit and whatever else the program raises: it has failed
            names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
            text = json.dumps({"error": names, "message": str(error)[:500]})
        self._replies.write(text + "\n")
        self._replies.flush()

    def _value(self, value: Any) -> Any:
        return decode(value, lambda index: self._objects[index])

    def _do_name(self, name: str) -> Any:
        if name not in self._globals:
            raise NameError(f"name '{name}' is not defined")
        return self._globals[name]

    def _do_has(self, name: str) -> bool:
        return name in self._globals

    def _do_names(self) -> list[str]:
        return [name for name in self._globals if not name.startswith("_")]

    def _do_call(self, target: Any, positional: Any, named: Any) -> Any:
        positional, named = self._value(positional), self._value(named)
        before = [encode(value, lambda _: None) for value in positional]
        result = self._value(target)(*positional, **named)
        changed = [
            [index, value]
            for index, value in enumerate(positional)
            if isinstance(value, list | dict | set) and encode(value, lambda _: None) != before[index]
        ]
        return (result, changed)

    def _do_attribute(self, target: Any, name: str) -> Any:
        return getattr(self._value(target), name)

    def _do_item(self, target: Any, key: Any) -> Any:
        return self._value(target)[self._value(key)]

    def _do_length(self, target: Any) -> Any:
        return len(self._value(target))

    def _do_items(self, target: Any) -> Any:
        items = []
        for item in self._value(target):
            items.append(item)
            if len(items) > MAX_ITEMS:
                raise ValueError(f"more than {MAX_ITEMS} items")
        return items
