"""The checker's side of the `code` grader: one test as the source of assertions, run against a program elsewhere.

The checker executes the test; every name that the test does not define stands for the program's global of that name,
which the program's host (`code_program`, in another sandbox) looks up. Values cross as plain builtins (`values`), other
objects stay there (`remote`).
"""

from __future__ import annotations

import builtins
import os
import sys
from typing import Any

from .remote import Connection, Untestable


def connect(fds: list[int]) -> Connection:
    """The connection over the socket `fds[0]`; what the test prints goes nowhere."""
    sys.set_int_max_str_digits(0)  # large integers are answers too; time and memory are bounded
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    return Connection(os.fdopen(os.dup(fds[0]), "w"), os.fdopen(fds[0]))


def assertions(arguments: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    """Run `test`: {"passed", "message"}, with "untestable" when the test itself is at fault, or {"no_host"}."""
    test, entry_point = arguments["test"], arguments["entry_point"]
    connection = connect(fds)
    if not connection.greeted():
        return {"no_host": True}
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
