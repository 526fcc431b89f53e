"""What runs inside the processes of the `code` grader: the program's host, the checker, and their exchange.

The host executes the program and answers requests: a global by name, a call, an attribute, an item. The checker
executes one test; every name that the test does not define stands for the program's global of that name. Values cross
as JSON with tags for what JSON lacks, copied by content, so that only plain builtins arrive at the checker whatever the
program returns; every other object stays in the host and arrives as a `Remote`, which compares by identity. Lists,
dictionaries and sets that a call changes in place are sent back.

Imports the standard library only, and little of it: these processes start once for each test.
"""

from __future__ import annotations

import builtins
import json
import os
import resource
import sys

TYPE_CHECKING = False  # as in typing, whose import alone would take a fifth of the start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO, Any

MAX_LINE = 4 * 2**20
MAX_ITEMS = 100_000
FILE_BYTES = 16 * 2**20
HOST, CHECKER, SCRIPT = "host", "checker", "script"


class Untestable(Exception):
    """The test needs what cannot cross to the program: the test is at fault, not the program."""


class RemoteError(Exception):
    """The program raised, ended, or returned what cannot cross."""


def limit(seconds: int, memory: int) -> None:
    """Bound this process. Root is not bound in its number of processes (the kernel's rule)."""
    for kind, amount in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (amount, amount))
    sys.set_int_max_str_digits(0)  # large integers are answers too; time and memory are bounded


def encode(value: Any, other: Callable[[Any], Any]) -> Any:
    """JSON for a plain value, subclasses by their content; `other(value)` for an object of any other kind."""
    if value is None or isinstance(value, bool):
        return value
    for plain in (int, float, str):
        if isinstance(value, plain):
            return value if type(value) is plain else plain.__new__(plain, value)  # type: ignore[type-var]  # a subclass
    if isinstance(value, list):
        return [encode(item, other) for item in list.__iter__(value)]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            items: Iterator[Any] = kind.__iter__(value)  # type: ignore[arg-type]  # of this very kind; mypy loses it
            return {"t": kind.__name__, "v": [encode(item, other) for item in items]}
    if isinstance(value, dict):
        return {"t": "dict", "v": [[encode(k, other), encode(v, other)] for k, v in dict.items(value)]}
    if isinstance(value, bytes | bytearray):
        return {"t": "bytes", "v": bytes(value).hex()}
    if isinstance(value, range):
        return {"t": "range", "v": [value.start, value.stop, value.step]}
    if isinstance(value, complex):
        return {"t": "complex", "v": [value.real, value.imag]}
    return other(value)


def decode(value: Any, remote: Callable[[int], Any]) -> Any:
    """The value of `encode`'s JSON; `remote(id)` for the objects that stayed behind."""
    if isinstance(value, list):
        return [decode(item, remote) for item in value]
    if not isinstance(value, dict):
        return value
    kind, content = value["t"], value["v"]
    if kind == "remote":
        return remote(content)
    if kind == "dict":
        return {decode(k, remote): decode(v, remote) for k, v in content}
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind in ("complex", "range"):
        return {"complex": complex, "range": range}[kind](*content)
    return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](decode(item, remote) for item in content)


class Host:
    """The program's side."""

    def __init__(self, requests: IO[str], replies: IO[str]) -> None:
        self._requests, self._replies = requests, replies
        self._objects: list[Any] = []
        self._globals: dict[str, Any] = {"__name__": "program", "__builtins__": builtins}

    def _keep(self, value: Any) -> Any:
        self._objects.append(value)
        return {"t": "remote", "v": len(self._objects) - 1}

    def greet(self) -> None:
        """Say that this process has started, before anything of the program runs."""
        self._replies.write("ready\n")
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


class Connection:
    """The checker's side of the exchange."""

    def __init__(self, requests: IO[str], replies: IO[str]) -> None:
        self._requests, self._replies = requests, replies

    def greeted(self) -> bool:
        """Whether the host has started."""
        return self._replies.readline() == "ready\n"

    def ask(self, operation: str, *arguments: Any) -> Any:
        """The value of a request. Raises what the program raised, as a builtin exception, or RemoteError."""
        text = json.dumps([operation, *arguments])
        try:
            self._requests.write(text + "\n")
            self._requests.flush()
        except BrokenPipeError:
            raise RemoteError("the program has ended") from None
        return self.reply()

    def reply(self) -> Any:
        """The next value the host sends."""
        line = self._replies.readline(MAX_LINE + 1024)
        try:
            reply = json.loads(line)
            if "error" not in reply:
                return decode(reply["value"], lambda index: Remote(self, index))
            names, message = reply["error"], str(reply["message"])
        except (ValueError, KeyError, TypeError, RecursionError):  # it ended, or writes what no host would
            raise RemoteError("the program has ended" if not line else "the program sent nonsense") from None
        for name in names:
            kind = getattr(builtins, str(name), None)
            # A test may expect an error. What is no Exception, or an assertion, would look like the test's own.
            if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, AssertionError):
                try:
                    error = kind(message)
                except TypeError:  # UnicodeDecodeError wants more
                    continue
                raise error
        raise RemoteError(f"{names[0] if names else 'error'}: {message}")


class Remote:
    """An object that stayed with the program. Equal to itself alone."""

    def __init__(self, connection: Connection, index: int) -> None:
        self.__dict__["_remote"] = (connection, index)

    def _ask(self, operation: str, *arguments: Any) -> Any:
        connection, index = self.__dict__["_remote"]
        return connection.ask(operation, {"t": "remote", "v": index}, *arguments)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        result, changed = self._ask("call", encode(list(positional), _outgoing), encode(named, _outgoing))
        for index, value in changed:
            _replace(positional[index], value)
        return result

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("attribute", name)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", encode(key, _outgoing))

    def __len__(self) -> int:
        return int(self._ask("length"))

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._ask("items")))


def _outgoing(value: Any) -> Any:
    if isinstance(value, Remote):
        return {"t": "remote", "v": value.__dict__["_remote"][1]}
    raise Untestable(f"a test passes a value of type {type(value).__name__}, which cannot cross to the program")


def _replace(mine: Any, changed: Any) -> None:
    """Give a list, dictionary or set its content after the call."""
    if isinstance(mine, list):
        mine[:] = changed
    elif isinstance(mine, dict | set):
        mine.clear()
        mine.update(changed)


class _Builtins(dict):  # type: ignore[type-arg]  # Any is not there at run time
    """Builtins that look up unknown names in the program."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(vars(builtins))
        self._connection = connection

    def __missing__(self, name: str) -> Any:
        return self._connection.ask("name", name)


def check(test: str, entry_point: str, connection: Connection) -> dict[str, Any]:
    """Run one test: {"passed", "message"}, with "untestable" when the test itself is at fault."""
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


def main(role: str, seconds: str, memory: str, *rest: str) -> None:
    """Entry of a process: limits first, then its role."""
    limit(int(seconds), int(memory))
    if role == SCRIPT:
        _script(rest[0])
    elif role == HOST:
        _host(int(rest[0]), int(rest[1]), rest[2])
    else:
        _checker(int(rest[0]), int(rest[1]))


def _source(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _script(path: str) -> None:
    namespace = sys.modules["__main__"].__dict__
    exec(compile(_source(path), path, "exec"), namespace)  # noqa: S102 - its purpose


def _host(requests: int, replies: int, path: str) -> None:
    host = Host(os.fdopen(requests), os.fdopen(replies, "w"))
    host.greet()
    host.serve(_source(path))


def _checker(requests: int, replies: int) -> None:
    verdicts = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a test prints must not look like a verdict
    test, entry_point = json.load(sys.stdin)
    connection = Connection(os.fdopen(requests, "w"), os.fdopen(replies))
    verdict = check(test, entry_point, connection) if connection.greeted() else {"no_host": True}
    verdicts.write(json.dumps(verdict))
    verdicts.close()
    os._exit(0)  # no clean-up: threads or exit handlers of a test cannot hold the verdict up
