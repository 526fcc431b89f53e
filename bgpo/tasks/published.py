"""Datasets in their published formats, as rows to train on: GSM8K, MATH, and programs with tests.

The files are the user's: JSON lines as the datasets are published, one row a line.

| task | fields read |
|---|---|
| gsm8k | `question`, `answer` (a solution that ends in `#### 18`) |
| math | `problem`, and `answer` (MATH500) or `solution` (MATH, the answer in `\\boxed{}`); `level`, `type`, `subject` |
| code | as HumanEval: `prompt`, `entry_point`, `test` |
| | as MBPP: `text` or `prompt`, `code`, `test_list`, `test_setup_code` or `test_imports` |
| | as DeepCoder: `problem` or `question`, `tests` (a list, or its JSON text), `starter_code` |

The prompts are in `bgpo.tasks.prompts`. Reference solutions are read for their answer and not kept.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bgpo.errors import DataError
from bgpo.rewards.extract import boxed
from bgpo.tasks import prompts
from bgpo.tasks.rows import Row

_NAMED = "{problem}\n\nThe function must be called `{name}`. It will be tested like this:\n{example}"
_COMPLETE = "Complete this Python function. Repeat its header and any helper in your program.\n\n```python\n{code}\n```"
_READS = "{problem}\n\nThe program reads its input from standard input and prints the result."


def convert(task: str, path: Path) -> list[Row]:
    """The training rows of a published file.

    Raises:
        DataError: naming the line, and the field that is missing or wrong.
        OSError: the file cannot be read.
    """
    convert_row = _TASKS[task]
    rows = []
    for line, row in _json_lines(path):
        try:
            rows.append(convert_row(row))
        except DataError as error:
            raise DataError(f"{path.name} line {line}: {error.message}", error.param, line) from None
    if not rows:
        raise DataError(f"{path.name} has no rows")
    return rows


def grader_spec(task: str) -> dict[str, Any]:
    """The grader of a task's rows."""
    if task != "code":
        return {"type": "math", "name": task, "reference": "{{ item.answer }}"}
    return {
        "type": "code",
        "name": "code",
        "tests": "{{ item.tests }}",
        "prefix": "{{ item.prefix }}",
        "entry_point": "{{ item.entry_point }}",
    }


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path.name} line {line}: not JSON ({error})", line=line) from error
            if not isinstance(row, dict):
                raise DataError(f"{path.name} line {line}: not a JSON object", line=line)
            yield line, row


def _gsm8k(row: dict[str, Any]) -> Row:
    _, marker, answer = _text(row, "answer").rpartition("####")
    if not marker or not answer.strip():
        raise DataError("'answer' must end in '#### ' and the result", "answer")
    return _math_row(_text(row, "question"), answer.strip())


def _math(row: dict[str, Any]) -> Row:
    problem = _text(row, "problem", "question")
    answer = str(row["answer"]) if "answer" in row else boxed(_text(row, "solution")) or ""
    if not answer.strip():
        raise DataError("needs a field 'answer', or a 'solution' with \\boxed{}", "solution")
    extra = {name: row[name] for name in ("level", "type", "subject") if name in row}
    return _math_row(problem, answer.strip()) | extra


def _math_row(problem: str, answer: str) -> Row:
    return {"messages": _messages(prompts.math(problem)), "answer": answer}


def _code(row: dict[str, Any]) -> Row:
    if "entry_point" in row and "test" in row:
        return _humaneval(row)
    if "test_list" in row:
        return _mbpp(row)
    if "tests" in row:
        return _deepcoder(row)
    raise DataError("needs 'entry_point' and 'test' (HumanEval), 'test_list' (MBPP) or 'tests' (DeepCoder)", "tests")


def _humaneval(row: dict[str, Any]) -> Row:
    code, name = _text(row, "prompt"), _text(row, "entry_point")
    # The prompt is a header with imports, helpers and a docstring: valid Python that the answer's function replaces.
    test = f"{_text(row, 'test')}\n\ncheck({name})\n"
    return _code_row(_COMPLETE.format(code=code.strip()), [test], prefix=code, entry_point=name)


def _mbpp(row: dict[str, Any]) -> Row:
    tests = row["test_list"]
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise DataError("'test_list' must be a list of assertions", "test_list")
    imports = row.get("test_imports") or []
    setup = "\n".join([*imports, row.get("test_setup_code") or ""]).strip()
    name = _tested_function(_text(row, "code"), tests)
    problem = _NAMED.format(problem=_text(row, "text", "prompt").strip(), name=name, example=tests[0])
    return _code_row(problem, [f"{setup}\n{test}".strip() for test in tests], entry_point=name)


def _tested_function(code: str, tests: list[str]) -> str:
    """The function of the reference program that the tests call; the last one where they call several."""
    try:
        defined = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        called = {node.id for node in ast.walk(ast.parse("\n".join(tests))) if isinstance(node, ast.Name)}
    except (SyntaxError, ValueError, RecursionError) as error:
        raise DataError(f"'code' or 'test_list' is not Python: {error}", "code") from error
    names = [name for name in defined if name in called]
    if not names:
        raise DataError("no function of 'code' is called in 'test_list'", "test_list")
    return names[-1]


def _deepcoder(row: dict[str, Any]) -> Row:
    tests = row["tests"]
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except (ValueError, RecursionError) as error:
            raise DataError(f"'tests' is neither a list nor JSON text ({error})", "tests") from error
    if isinstance(tests, dict) and {"inputs", "outputs"} <= tests.keys():  # the columns of TACO and APPS
        pairs = zip(tests["inputs"], tests["outputs"], strict=False)
        name = tests.get("fn_name")
        kind = {"fn_name": name} if name else {}
        tests = [{"input": given, "output": wanted, **kind} for given, wanted in pairs]
    if not isinstance(tests, list) or not tests:
        raise DataError("'tests' must be a list that is not empty", "tests")
    problem = _text(row, "problem", "question").strip()
    starter = row.get("starter_code") or ""
    owner = "Solution()." if "class Solution" in starter else ""
    converted = [_case(test, owner) for test in tests]
    name = next((name for name, _ in converted if name), "")
    if not name:
        return _code_row(_READS.format(problem=problem), [test for _, test in converted])
    problem = _NAMED.format(problem=problem, name=name, example=converted[0][1])
    if starter:
        problem += f"\n\nStart from this:\n\n```python\n{starter.strip()}\n```"
    return _code_row(problem, [test for _, test in converted], entry_point="" if owner else name)


def _case(test: Any, owner: str) -> tuple[str, str | dict[str, str]]:
    """A test's function name, empty for a whole program, and the test; `owner` stands before the name in the call."""
    if not isinstance(test, dict) or not {"input", "output"} <= test.keys():
        raise DataError("each of 'tests' must have 'input' and 'output'", "tests")
    metadata = test.get("metadata") or {}
    name = test.get("fn_name") or (metadata.get("func_name") if isinstance(metadata, dict) else None) or ""
    if not name:
        return "", {"input": _lines(test["input"]), "output": _lines(test["output"])}
    if not str(name).isidentifier():
        raise DataError(f"{name!r} is not the name of a function", "tests")
    arguments, wanted = _values(test["input"]), test["output"]
    if isinstance(wanted, str):
        wanted = _values(wanted)[0]
    elif isinstance(wanted, list) and len(wanted) == 1:
        wanted = wanted[0]  # APPS and TACO wrap the result in a list
    return str(name), f"assert {owner}{name}({', '.join(map(repr, arguments))}) == {wanted!r}"


def _lines(value: Any) -> str:
    """Text for standard input or output; some files keep a list of lines."""
    return "\n".join(map(str, value)) + "\n" if isinstance(value, list) else str(value)


def _values(value: Any) -> list[Any]:
    """Arguments: a list, or text with one JSON value a line (LiveCodeBench)."""
    if not isinstance(value, str):
        return value if isinstance(value, list) else [value]
    try:
        return [json.loads(line) for line in value.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DataError(f"arguments of a test are not JSON, one a line ({error})", "tests") from error


def _code_row(problem: str, tests: list[Any], prefix: str = "", entry_point: str = "") -> Row:
    messages = _messages(prompts.code(problem))
    return {"messages": messages, "tests": tests, "prefix": prefix, "entry_point": entry_point}


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _text(row: dict[str, Any], *names: str) -> str:
    """The first of these fields that the row has."""
    name = next((name for name in names if name in row), None)
    if name is None:
        raise DataError(f"has no field {' or '.join(map(repr, names))}", names[0])
    if not isinstance(row[name], str) or not row[name].strip():
        raise DataError(f"'{name}' must be text that is not empty", name)
    text: str = row[name]
    return text


_TASKS: dict[str, Callable[[dict[str, Any]], Row]] = {"gsm8k": _gsm8k, "math": _math, "code": _code}
TASKS = tuple(_TASKS)
