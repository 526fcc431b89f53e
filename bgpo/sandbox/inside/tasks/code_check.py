"""The checker's side of the `code` grader: tests as the source of assertions, run against a program elsewhere.

The checker executes the tests of one program, one after the other; every name that a test does not define stands for
the program's global of that name, which the program's host (`code_program`, in another sandbox) looks up. Values cross
as plain builtins (`values`), other objects stay there (`remote`). Verdicts go to a file as they are made, so that those
before a test that breaks this process are kept.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import sys
from typing import IO, Any

from .remote import Connection, Untestable

_AGAIN_S = 0.05


def quiet() -> None:
    """What a test prints goes nowhere."""
    sys.set_int_max_str_digits(0)  # large integers are answers too; time and memory are bounded
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)


def connect(fd: int) -> Connection:
    """The connection over a socket."""
    return Connection(os.fdopen(os.dup(fd), "w"), os.fdopen(fd))


def write(file: IO[str], line: dict[str, Any]) -> None:
    """Add a line to the file of results."""
    file.write(json.dumps(line) + "\n")
    file.flush()


def assertions(arguments: dict[str, Any], fds: list[int]) -> None:
    """Run `tests`, each over its own socket of `fds[1:]`, until `timeouts` of them took longer than `seconds`.

    For each a line to the file `fds[0]`: {"passed", "message"}, with "untestable" when the test itself is at fault,
    "timeout" when it took too long, "no_host" when the program could not be started.
    """
    quiet()
    clock = _Clock(arguments["seconds"])
    left = arguments["timeouts"]
    with os.fdopen(fds[0], "w") as results:
        for test, fd in zip(arguments["tests"], fds[1:], strict=True):
            connection = connect(fd)
            verdict = clock.run(test, arguments["entry_point"], connection)
            write(results, verdict)
            connection.close()
            left -= "timeout" in verdict
            if left <= 0:
                return


class _OutOfTime(BaseException):
    """Raised in a test that takes too long."""


class _Clock:
    """Ends tests that take too long, by a signal: they wait for the program, or compute little."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._rung = False
        signal.signal(signal.SIGALRM, self._ring)

    def _ring(self, *_: object) -> None:
        self._rung = True
        raise _OutOfTime

    def run(self, test: str, entry_point: str, connection: Connection) -> dict[str, Any]:
        """The verdict on a test. One that has caught its end is out of time all the same."""
        self._rung = False
        try:
            signal.setitimer(signal.ITIMER_REAL, self._seconds, _AGAIN_S)
            try:
                verdict = _verdict(test, entry_point, connection)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except _OutOfTime:
            verdict = {}
        return {"passed": False, "message": "", "timeout": True} if self._rung else verdict


def _verdict(test: str, entry_point: str, connection: Connection) -> dict[str, Any]:
    if not connection.begin():
        return {"passed": False, "message": "", "no_host": True}
    try:
        code = compile(test, "test", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return {"passed": False, "message": f"not Python: {error}", "untestable": True}
    names: dict[str, Any] = {"__name__": "test", "__builtins__": _Builtins(connection)}
    try:
        connection.reply()  # the program has been executed
        if entry_point and connection.ask("has", entry_point):
            names[entry_point] = connection.ask("name", entry_point)
        exec(code, names)  # noqa: S102 - its purpose
    except Untestable as error:
        return {"passed": False, "message": str(error), "untestable": True}
    except BaseException as error:  # a test fails by raising, whatever it raises
        return {"passed": False, "message": f"{type(error).__name__}: {error}"[:300]}
    return {"passed": True, "message": ""}


class _Builtins(dict[str, Any]):
    """Builtins that look up unknown names in the program."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(vars(builtins))
        self._connection = connection

    def __missing__(self, name: str) -> Any:
        return self._connection.ask("name", name)
