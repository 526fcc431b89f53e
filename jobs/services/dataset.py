"""The check of a fine-tune file, JSONL, read line by line in bounded memory. A line is a conversation or a preference:

    {"messages": [...], ...}
    {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...], ...}

Every problem names its line. An upload ends at the first (`check`); `report` goes on to the end. What methods need of a
row differs, so the summary remembers the first line that does not end with a user or an assistant message, or is no
preference; creating a job then costs no second read. Graders' needs of other fields are not checked here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Never, get_args

from bgpo.errors import DataError

ROLES = ("system", "user", "assistant")
OUTPUTS = ("preferred_output", "non_preferred_output")
MAX_MESSAGES = 1024
MAX_PROBLEMS = 100
"""Of a report."""
EMPTY = "The file is empty: it needs one JSON object a line."
BLANK_LINE = "blank_line"
_CHUNK = 1 << 20
Kind = Literal["prompt", "answered", "preference"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Summary:
    """What jobs need to know about a checked file; lines are 1-based."""

    rows: int
    first_not_user: int | None
    """First line whose last message is not the user's: no prompt for reinforcement."""
    first_not_answer: int | None
    """First line whose last message is not the assistant's: nothing to learn from."""
    first_not_preference: int | None
    """First line that does not hold two answers to choose from."""

    def as_json(self) -> dict[str, Any]:
        """The form stored with the file's row."""
        return asdict(self)


@dataclass(frozen=True)
class Problem:
    """Why a line cannot be used."""

    line: int
    param: str | None
    """Path within the row."""
    message: str
    """What is wrong with the line, a sentence without its beginning."""
    code: str


@dataclass(frozen=True)
class Row:
    """A line that can be used."""

    line: int
    kind: Kind
    messages: int
    characters: int


@dataclass
class Report:
    """What there is to say of a whole file."""

    rows: int = 0
    """Lines that hold something."""
    problems: list[Problem] = field(default_factory=list)
    """The first `MAX_PROBLEMS`."""
    problem_count: int = 0
    kinds: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    """Good rows by kind."""
    messages: int = 0
    """Of good rows."""
    most_messages: int = 0
    characters: int = 0
    """Of the messages of good rows."""
    most_characters: int = 0

    def add(self, found: Row | Problem) -> None:
        """Count a line."""
        self.rows += found.code != BLANK_LINE if isinstance(found, Problem) else 1
        if isinstance(found, Problem):
            self.problem_count += 1
            if self.problem_count <= MAX_PROBLEMS:
                self.problems.append(found)
            return
        self.kinds[found.kind] += 1
        self.messages += found.messages
        self.characters += found.characters
        self.most_messages = max(self.most_messages, found.messages)
        self.most_characters = max(self.most_characters, found.characters)


def check(path: Path, *, max_line_bytes: int) -> Summary:
    """Read a whole file.

    Raises:
        DataError: naming the first line that cannot be used.
    """
    rows = 0
    first_not: dict[Kind, int] = {}
    with path.open("rb") as file:
        for found in _inspect(iter(lambda: file.read(_CHUNK), b""), max_line_bytes):
            if isinstance(found, Problem):
                raise DataError(f"Malformed JSONL: line {found.line} {found.message}.", "file", found.line)
            for other in KINDS:
                if other != found.kind:
                    first_not.setdefault(other, found.line)
            rows += 1
    if not rows:
        raise DataError(EMPTY, "file")
    return Summary(
        rows,
        first_not_user=first_not.get("prompt"),
        first_not_answer=first_not.get("answered"),
        first_not_preference=first_not.get("preference"),
    )


def report(chunks: Iterable[bytes], *, max_line_bytes: int) -> Report:
    """Everything that is wrong with a file, and what it holds."""
    made = Report()
    for found in _inspect(chunks, max_line_bytes):
        made.add(found)
    return made


class _BadRow(Exception):
    """A row that cannot be used: what its `Problem` will say."""

    def __init__(self, message: str, param: str | None, code: str) -> None:
        super().__init__(message, param, code)
        self.message, self.param, self.code = message, param, code


def _inspect(chunks: Iterable[bytes], max_line_bytes: int) -> Iterator[Row | Problem]:
    blank: int | None = None
    for number, line in _lines(chunks, max_line_bytes):
        if line is not None and not line.strip():
            blank = blank or number
            continue
        if blank is not None:
            yield Problem(blank, None, "is blank; only the end of a file may be", BLANK_LINE)
            blank = None
        try:
            if line is None:
                _fail(f"is longer than {max_line_bytes} bytes", None, "line_too_long")
            yield _row(number, _parse(line))
        except _BadRow as bad:
            yield Problem(number, bad.param, bad.message, bad.code)


def _lines(chunks: Iterable[bytes], limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers, None for one that is too long."""
    number, waiting, too_long = 1, bytearray(), False
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for piece in (*ended, None):
            waiting += rest if piece is None else piece
            if len(waiting) > limit and not too_long:
                too_long = True
                yield number, None
            if piece is not None:
                if not too_long:
                    yield number, bytes(waiting)
                number, too_long = number + 1, False
            if piece is not None or too_long:
                waiting.clear()
    if waiting:
        yield number, bytes(waiting)


def _fail(message: str, param: str | None, code: str = "invalid_value") -> Never:
    raise _BadRow(message, param, code)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
        row = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:
            json.dumps(row, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no character
    except UnicodeError:
        _fail("is not valid UTF-8", None, "invalid_utf8")
    except json.JSONDecodeError as error:
        _fail(f"is not valid JSON ({error.msg} at column {error.colno})", None, "invalid_json")
    except RecursionError:
        _fail("is nested too deeply", None, "invalid_json")
    if not isinstance(row, dict):
        _fail("is not a JSON object", None, "not_an_object")
    return row


def _refuse_constant(name: str) -> Never:
    _fail(f"contains {name}, which is not JSON", None, "invalid_json")


def _row(number: int, row: dict[str, Any]) -> Row:
    if "messages" not in row and any(name in row for name in OUTPUTS):
        _check_preference(row)
        return Row(number, "preference", *_size([*row["input"]["messages"], *row[OUTPUTS[0]], *row[OUTPUTS[1]]]))
    messages: Any = row.get("messages")
    _check_messages(messages, "messages")
    answered = bool(messages[-1]["role"] == "assistant")
    asks = messages[:-1] if answered else messages
    if not asks or asks[-1]["role"] != "user":
        _fail("needs messages that end with the user's, or with the assistant's answer to the user's", "messages")
    return Row(number, "answered" if answered else "prompt", *_size(messages))


def _size(messages: list[dict[str, Any]]) -> tuple[int, int]:
    return len(messages), sum(len(message["content"]) for message in messages)


def _check_preference(row: dict[str, Any]) -> None:
    given = row.get("input")
    if not isinstance(given, dict):
        _fail("needs 'input', an object with the messages to answer", "input")
    if given.get("tools"):
        _fail("has input.tools, which are not supported", "input.tools", "unsupported_parameter")
    _check_messages(given.get("messages"), "input.messages")
    if given["messages"][-1]["role"] != "user":
        _fail("needs input.messages that end with the user's", "input.messages")
    for name in OUTPUTS:
        _check_messages(row.get(name), name)
        if len(row[name]) != 1 or row[name][0]["role"] != "assistant":
            _fail(f"needs {name} to be one message of the assistant's", name)
    if row[OUTPUTS[0]][0]["content"] == row[OUTPUTS[1]][0]["content"]:
        _fail(f"has the same answer in {OUTPUTS[0]} and {OUTPUTS[1]}", OUTPUTS[1])


def _check_messages(messages: Any, name: str) -> None:
    if not isinstance(messages, list) or not messages:
        _fail(f"needs '{name}', a list of at least one message", name)
    if len(messages) > MAX_MESSAGES:
        _fail(f"has more than {MAX_MESSAGES} messages", name)
    for index, message in enumerate(messages):
        where = f"{name}[{index}]"
        if not isinstance(message, dict):
            _fail(f"has {where} that is not an object", where)
        if message.get("role") not in ROLES:
            _fail(f"needs {where}.role to be one of {', '.join(ROLES)}", f"{where}.role")
        if not isinstance(message.get("content"), str):
            _fail(f"needs {where}.content to be a string", f"{where}.content")
