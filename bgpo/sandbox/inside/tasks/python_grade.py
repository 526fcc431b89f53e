"""What runs of a `python` grader inside its sandbox: try the source once, grade one item.

Each task has a freshly forked process to itself, in which the source is executed anew, so that nothing one item leaves
behind reaches the next. The source is a tenant's own: it may answer here whatever it likes, for its own job alone, and
the caller checks that an answer is a finite number or a text.
"""

from __future__ import annotations

import ast
import importlib
import linecache
import math
import sys
import traceback
from typing import Any

FILE = "<grader>"
MAX_DETAILS = 4096
"""Characters of a traceback, its end."""


def check(arguments: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    """Execute `source` once: {"modules": what it imports anywhere} when it defines `grade`, else {"error": why not}."""
    source = arguments["source"]
    try:
        tree = compile(source, FILE, "exec", ast.PyCF_ONLY_AST)
    except SyntaxError as error:
        return {"error": f"line {error.lineno}: {error.msg}" if error.lineno else error.msg}
    except (ValueError, RecursionError, MemoryError) as error:
        return {"error": f"not Python: {error}"}
    modules = [name for name in _imports(tree) if _loads(name)]
    try:
        names = _execute(source)
    except BaseException as error:  # whatever the source raises: it is not usable
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == FILE]
        return {"error": f"line {lines[-1] if lines else 1}: {_summary(error)}"}
    if not callable(names.get("grade")):
        return {"error": "it defines no function grade(sample, item)"}
    return {"modules": modules}


def _imports(tree: ast.AST) -> list[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return sorted(names)


def _loads(name: str) -> bool:
    """Whether a module of this name can be imported, here where nothing of the tenant's has run."""
    try:
        importlib.import_module(name)
    except BaseException:  # whatever a module raises: it is not loaded ahead, and the source will see why
        return False
    return True


def grade(arguments: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    """Call `grade(sample, item)` of `source`: {"score"}, or {"error"}, with "details" when it raised."""
    try:
        value = _execute(arguments["source"])["grade"](arguments["sample"], arguments["item"])
    except BaseException as error:  # whatever the source raises: the item has no score
        return {"error": _summary(error), "details": _details(error)}
    try:
        return {"score": _number(value)}
    except (TypeError, ValueError, OverflowError) as error:
        return {"error": f"grade returned {error}"}


def _execute(source: str) -> dict[str, Any]:
    """The globals of the source, whose lines tracebacks can quote."""
    linecache.cache[FILE] = (len(source), None, source.splitlines(keepends=True), FILE)
    names: dict[str, Any] = {"__name__": "grader", "__builtins__": __builtins__}
    exec(compile(source, FILE, "exec"), names)  # noqa: S102 - its purpose
    return names


def _number(value: Any) -> float:
    """A finite float. Raises TypeError, ValueError or OverflowError that names what was returned instead."""
    numpy = sys.modules.get("numpy")
    if isinstance(value, float):
        number = float.__float__(value)  # of a subclass, its content
    elif isinstance(value, int):
        try:
            number = float(int.__int__(value))
        except OverflowError:
            raise OverflowError("an integer beyond the range of floats") from None
    elif numpy is not None and isinstance(value, numpy.integer | numpy.floating | numpy.bool_):
        number = float(value)
    else:
        raise TypeError(f"{_article(type(value).__name__)}: return a float")
    if not math.isfinite(number):
        raise ValueError(f"{number}: return a finite float")
    return number


def _article(name: str) -> str:
    return "None" if name == "NoneType" else f"a value of type {name[:80]}"


def _summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _details(error: BaseException) -> str:
    """The traceback through the source alone, without our frames and a library's."""
    summary = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = summary
    seen: list[traceback.TracebackException] = []
    while part is not None and part not in seen:
        part.stack = traceback.StackSummary.from_list([frame for frame in part.stack if frame.filename == FILE])
        seen.append(part)
        part = part.__cause__ or part.__context__
    return "".join(summary.format())[-MAX_DETAILS:]
