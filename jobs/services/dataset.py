"""The check of an uploaded fine-tune file, JSONL, read line by line. A line is a conversation or a preference:

    {"messages": [...], ...}
    {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...], ...}

Every problem names its line. What methods need of a row differs, so the summary remembers the first line that does not
end with a user or an assistant message, or is no preference; creating a job then costs no second read. Graders' needs
of other fields are not checked here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Never, get_args

from bgpo.errors import DataError

ROLES = ("system", "user", "assistant")
OUTPUTS = ("preferred_output", "non_preferred_output")
MAX_MESSAGES = 1024
Kind = Literal["prompt", "answered", "preference"]
KINDS: frozenset[Kind] = frozenset(get_args(Kind))


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


def check(path: Path, *, max_line_bytes: int) -> Summary:
    """Read a whole file in bounded memory.

    Raises:
        DataError: naming the first line that cannot be used.
    """
    number, rows = 0, 0
    first_not: dict[Kind, int] = {}
    with path.open("rb") as file:
        while line := file.readline(max_line_bytes + 1):
            number += 1
            if len(line) > max_line_bytes:
                _fail(number, f"is longer than {max_line_bytes} bytes")
            if not line.strip():
                if file.read(max_line_bytes).strip():
                    _fail(number, "is blank; only the end of a file may be")
                break
            kind = _check_row(number, _parse(number, line))
            for other in KINDS - {kind}:
                first_not.setdefault(other, number)
            rows += 1
    if not rows:
        raise DataError("The file is empty: it needs one JSON object a line.", "file")
    return Summary(
        rows,
        first_not_user=first_not.get("prompt"),
        first_not_answer=first_not.get("answered"),
        first_not_preference=first_not.get("preference"),
    )


def _fail(line: int, problem: str) -> Never:
    raise DataError(f"Malformed JSONL: line {line} {problem}.", "file", line)


def _parse(number: int, line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
        row = json.loads(text, parse_constant=lambda name: _fail(number, f"contains {name}, which is not JSON"))
        if "\\u" in text:
            json.dumps(row, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no character
    except UnicodeError:
        _fail(number, "is not valid UTF-8")
    except json.JSONDecodeError as error:
        _fail(number, f"is not valid JSON ({error.msg} at column {error.colno})")
    except RecursionError:
        _fail(number, "is nested too deeply")
    if not isinstance(row, dict):
        _fail(number, "is not a JSON object")
    return row


def _check_row(number: int, row: dict[str, Any]) -> Kind:
    if "messages" not in row and any(name in row for name in OUTPUTS):
        _check_preference(number, row)
        return "preference"
    messages: Any = row.get("messages")
    _check_messages(number, messages, "messages")
    answered = bool(messages[-1]["role"] == "assistant")
    asks = messages[:-1] if answered else messages
    if not asks or asks[-1]["role"] != "user":
        _fail(number, "needs messages that end with the user's, or with the assistant's answer to the user's")
    return "answered" if answered else "prompt"


def _check_preference(number: int, row: dict[str, Any]) -> None:
    given = row.get("input")
    if not isinstance(given, dict):
        _fail(number, "needs 'input', an object with the messages to answer")
    if given.get("tools"):
        _fail(number, "has input.tools, which are not supported")
    _check_messages(number, given.get("messages"), "input.messages")
    if given["messages"][-1]["role"] != "user":
        _fail(number, "needs input.messages that end with the user's")
    for name in OUTPUTS:
        _check_messages(number, row.get(name), name)
        if len(row[name]) != 1 or row[name][0]["role"] != "assistant":
            _fail(number, f"needs {name} to be one message of the assistant's")
    if row[OUTPUTS[0]][0]["content"] == row[OUTPUTS[1]][0]["content"]:
        _fail(number, f"has the same answer in {OUTPUTS[0]} and {OUTPUTS[1]}")


def _check_messages(number: int, messages: Any, field: str) -> None:
    if not isinstance(messages, list) or not messages:
        _fail(number, f"needs '{field}', a list of at least one message")
    if len(messages) > MAX_MESSAGES:
        _fail(number, f"has more than {MAX_MESSAGES} messages")
    for index, message in enumerate(messages):
        where = f"{field}[{index}]"
        if not isinstance(message, dict):
            _fail(number, f"has {where} that is not an object")
        if message.get("role") not in ROLES:
            _fail(number, f"needs {where}.role to be one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            _fail(number, f"needs {where}.content to be a string")
