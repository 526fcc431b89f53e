"""The checker's side of the `code` grader: a pytest file, run by pytest against a program elsewhere.

`solution` stands for the program: `import solution` and `from solution import f` ask the program's host
(`code_program`, in another sandbox), as do bare names that neither the file nor Python defines. What the program does
not have fails where a test uses it, so that the number of tests does not depend on the program. Results are written
to a file as they come: those of tests that finished count when a later one runs out of time.
"""

from __future__ import annotations

import ast
import builtins
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

from .code_check import connect, quiet, write
from .remote import Connection, Untestable

FILE = "test_solution.py"
MAX_RESULTS = 1000
_OPTIONS = ("-q", "--import-mode=importlib", "--rootdir=.", "-c", os.devnull, "-s", "--tb=native")
_WITHOUT = ("cacheprovider", "stepwise", "faulthandler", "junitxml", "pastebin", "doctest", "debugging", "setupplan")


def pytest_file(arguments: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    """Run the file `test` over the socket `fds[1]`: {}, {"untestable": why}, or {"no_host"}.

    Results go to the file `fds[0]` as lines: {"collected": names}, then {"test", "passed", "message", "skipped"} each.
    """
    quiet()
    connection = connect(fds[1])
    if not connection.begin():
        return {"no_host": True}
    try:
        used = _names(arguments["test"])
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return {"untestable": f"not Python: {error}"}
    with open(FILE, "w", encoding="utf-8", errors="replace") as file:
        file.write(arguments["test"])
    _offer(connection, used)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    import pytest

    results = Results(os.fdopen(fds[0], "w"), connection)
    without = [argument for name in _WITHOUT for argument in ("-p", f"no:{name}")]
    pytest.main([*_OPTIONS, *without, FILE], plugins=[results])
    return {"untestable": results.fault} if results.fault else {}


def _names(source: str) -> set[str]:
    """The names that the file reads and Python does not have."""
    tree = ast.parse(source)
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - set(dir(builtins))


def _offer(connection: Connection, used: set[str]) -> None:
    """Make the program's globals importable, and those among `used` known by their bare names."""
    solution = ModuleType("solution")
    sys.modules["solution"] = solution
    try:
        connection.reply()  # the program has been executed
        present = set(connection.ask("names"))
    except Exception as error:
        # Whatever the program raised: each of its names fails with it, where a test uses one.
        failure = error
        solution.__dict__["__getattr__"] = lambda name: _absent(name, lambda: _fail(failure))
        for name in used:
            setattr(builtins, name, _absent(name, lambda: _fail(failure)))
        return
    solution.__dict__["__all__"] = sorted(name for name in present if isinstance(name, str))
    solution.__dict__["__getattr__"] = lambda name: _lookup(connection, name)
    for name in used & present:
        setattr(builtins, name, _lookup(connection, name))


def _lookup(connection: Connection, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        return connection.ask("name", name)
    except Exception as error:  # whatever the program raised
        failure = error
        return _absent(name, lambda: _fail(failure))


def _fail(error: Exception) -> NoReturn:
    raise error.with_traceback(None)


def _absent(name: str, fail: Callable[[], NoReturn]) -> Any:
    """What stands for a name that the program does not have: any use raises."""

    def use(*_: Any, **__: Any) -> NoReturn:
        fail()

    methods = ("__call__", "__getattr__", "__getitem__", "__len__", "__iter__", "__eq__", "__ne__", "__bool__")
    members = dict.fromkeys((*methods, "__lt__", "__le__", "__gt__", "__ge__", "__add__", "__contains__"), use)
    return type(name, (), members | {"__hash__": lambda _: 0})()


class Results:
    """The pytest plugin that writes down what happens."""

    def __init__(self, file: Any, connection: Connection) -> None:
        self._file, self._connection = file, connection
        self._failures: dict[str, str] = {}
        self._skipped: set[str] = set()
        self.fault: str | None = None
        """Why the file cannot be used, whatever the program is."""

    def pytest_exception_interact(self, node: Any, call: Any, report: Any) -> None:
        """Why a test fails, or the file cannot be imported: an own fault of the file, if not the program's."""
        error = call.excinfo.value
        text = str(error).strip()
        message = f"{type(error).__name__}: {text.partition(chr(10))[0]}"[:300]
        if isinstance(error, Untestable):
            self.fault = message
        elif report.when != "collect":
            self._failures[report.nodeid] = message
        elif isinstance(error, node.CollectError):  # pytest's own words, and in the last line the reason
            self.fault = text.rpartition("\n")[2].removeprefix("E ").strip()[:300]
        elif self._connection.failed:
            write(self._file, {"collected": [FILE]})
            write(self._file, {"test": FILE, "passed": False, "message": message, "skipped": False})
        else:
            self.fault = message

    def pytest_collection_finish(self, session: Any) -> None:
        """All tests, before the first runs."""
        names = [item.nodeid.partition("::")[2] for item in session.items]
        if session.testsfailed == 0 and not 1 <= len(names) <= MAX_RESULTS:
            self.fault = self.fault or f"it has {len(names)} test functions, not 1 to {MAX_RESULTS}"
            session.items.clear()
        elif names:
            write(self._file, {"collected": names})

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test passes when set-up, call and tear-down do; one that is skipped does not count."""
        if report.failed:
            self._failures.setdefault(report.nodeid, "failed")  # why, if pytest knows, comes right after
        if report.skipped and not hasattr(report, "wasxfail"):
            self._skipped.add(report.nodeid)
        if report.when == "teardown":
            failure = self._failures.get(report.nodeid)
            line = {"test": report.nodeid.partition("::")[2], "passed": failure is None, "message": failure or ""}
            write(self._file, line | {"skipped": report.nodeid in self._skipped and failure is None})
