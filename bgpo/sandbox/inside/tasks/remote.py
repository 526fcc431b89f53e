"""The checker's side of the exchange with a program's host (`code_program`): requests, and objects that stay there."""

from __future__ import annotations

import builtins
import contextlib
import json
from collections.abc import Iterator
from typing import IO, Any

from .code_program import BEGIN, STARTED
from .values import MAX_LINE, decode, encode


class Untestable(Exception):
    """The test needs what cannot cross to the program: the test is at fault, not the program."""


class RemoteError(Exception):
    """The program raised, ended, or returned what cannot cross."""


class Connection:
    """Asks the host, and believes nothing but plain values."""

    def __init__(self, requests: IO[str], replies: IO[str]) -> None:
        self._requests, self._replies = requests, replies
        self.failed = False
        """Whether the program has raised, ended, or answered nonsense at least once."""

    def begin(self) -> bool:
        """Have the program started; whether it was."""
        try:
            self._requests.write(BEGIN)
            self._requests.flush()
            return self._replies.readline(len(STARTED)) == STARTED
        except (BrokenPipeError, ConnectionResetError):
            return False

    def close(self) -> None:
        """End the host's process for this connection."""
        self._replies.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._requests.close()

    def ask(self, operation: str, *arguments: Any) -> Any:
        """The value of a request. Raises what the program raised, as a builtin exception, or RemoteError."""
        text = json.dumps([operation, *arguments])
        try:
            self._requests.write(text + "\n")
            self._requests.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.failed = True
            raise RemoteError("the program has ended") from None
        return self.reply()

    def reply(self) -> Any:
        """The next value the host sends."""
        line = ""
        try:
            line = self._replies.readline(MAX_LINE + 1024)
            reply = json.loads(line)
            if "error" not in reply:
                return decode(reply["value"], lambda index: Remote(self, index))
            names, message = list(reply["error"]), str(reply["message"])
        # It ended, or writes what no host would.
        except (ValueError, KeyError, TypeError, RecursionError, ConnectionResetError):
            self.failed = True
            raise RemoteError("the program has ended" if not line else "the program sent nonsense") from None
        self.failed = True
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
