"""Conversion of the published formats, with rows made for these tests, and the graders on answers to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bgpo.rewards import Sample, compile_grader
from bgpo.tasks import published
from bgpo.tasks.__main__ import main

GSM8K = {"question": "A box holds 6 eggs. How many do 3 boxes hold?", "answer": "3 * 6 = <<3*6=18>>18\n#### 18"}
MATH = {
    "problem": "What is $\\frac{1}{4}+\\frac14$?",
    "level": "Level 1",
    "type": "Prealgebra",
    "solution": "It is $\\boxed{\\frac{1}{2}}$.",
}
MATH500 = {"problem": "Give $(0, 1)$ in words.", "answer": "\\text{unit}", "subject": "Algebra", "level": 2}
HUMANEVAL = {
    "task_id": "Own/0",
    "prompt": 'from typing import List\n\n\ndef double(xs: List[int]) -> List[int]:\n    """Twice each."""\n',
    "entry_point": "double",
    "canonical_solution": "    return [2 * x for x in xs]\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n    assert candidate([]) == []\n",
}
MBPP = {
    "text": "Write a function to add two numbers.",
    "code": "def helper(a):\r\n  return a\r\ndef sum(a, b):\r\n  return a + b",
    "task_id": 1,
    "test_setup_code": "",
    "test_list": ["assert sum(1, 2) == 3", "assert sum(0, 0) == 0"],
}
STDIN = {
    "problem": "Double a number.",
    "tests": json.dumps([{"type": "stdin_stdout", "input": "2\n", "output": "4\n"}]),
}
CALLS = {
    "problem": "Add.",
    "starter_code": "class Solution:\n    def add(self, a, b):\n",
    "tests": [{"input": "1\n2", "output": "3", "testtype": "functional", "metadata": {"func_name": "add"}}],
}
COLUMNS = {"question": "Add.", "tests": {"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [[3], [7]]}}


def convert(task: str, rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main([task, "--input", str(source), "--out", str(out)])
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_gsm8k(tmp_path: Path) -> None:
    (row,) = convert("gsm8k", [GSM8K], tmp_path)
    assert row["answer"] == "18"
    (message,) = row["messages"]
    assert message["role"] == "user"
    assert message["content"].startswith(GSM8K["question"])
    assert "<<" not in message["content"]
    grader = compile_grader(published.grader_spec("gsm8k"))
    answer = "<reasoning>\n3 times 6\nis 18\n</reasoning>\n<answer>\n\\boxed{18}\n</answer>"
    assert grader.grade(Sample(answer), row).solved


def test_math_and_math500(tmp_path: Path) -> None:
    first, second = convert("math", [MATH, MATH500], tmp_path)
    assert (first["answer"], first["level"], first["type"]) == ("\\frac{1}{2}", "Level 1", "Prealgebra")
    assert (second["answer"], second["subject"], second["level"]) == ("\\text{unit}", "Algebra", 2)
    grader = compile_grader(published.grader_spec("math"))
    assert grader.grade(Sample("so \\boxed{0.5}"), first).solved
    assert grader.grade(Sample("<answer>unit</answer>"), second).solved
    assert not grader.grade(Sample("\\boxed{0.25}"), first).solved


def test_code_formats(tmp_path: Path) -> None:
    rows = convert("code", [HUMANEVAL, MBPP, STDIN, CALLS, COLUMNS], tmp_path)
    human, mbpp, stdin, calls, columns = rows
    assert human["entry_point"] == "double"
    assert human["prefix"] == HUMANEVAL["prompt"]
    assert human["tests"] == [HUMANEVAL["test"] + "\n\ncheck(double)\n"]
    assert (mbpp["entry_point"], mbpp["tests"]) == ("sum", MBPP["test_list"])
    assert "`sum`" in mbpp["messages"][0]["content"]
    assert stdin["tests"] == [{"input": "2\n", "output": "4\n"}]
    assert calls["tests"] == ["assert Solution().add(1, 2) == 3"]
    assert columns["tests"] == ["assert add(1, 2) == 3", "assert add(3, 4) == 7"]
    assert all("canonical" not in json.dumps(row) and "2 * x" not in json.dumps(row) for row in rows)


def test_programs_for_converted_rows_are_graded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGPO_ALLOW_UNSANDBOXED", "1")
    human, mbpp, stdin, calls = convert("code", [HUMANEVAL, MBPP, STDIN, CALLS], tmp_path)
    grader = compile_grader(published.grader_spec("code"))
    answers = [
        (human, "def double(xs: List[int]) -> List[int]:\n    return [x + x for x in xs]"),
        (mbpp, "def sum(a, b):\n    return a + b"),
        (stdin, "print(2 * int(input()))"),
        (calls, "class Solution:\n    def add(self, a, b):\n        return a + b"),
    ]
    for row, program in answers:
        grade = grader.grade(Sample(f"<answer>\n```python\n{program}\n```\n</answer>"), row)
        assert grade.solved, grade
    assert not grader.grade(Sample("```python\ndef sum(a, b):\n    return 3\n```"), mbpp).solved


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("gsm8k", "{", "line 2: not JSON"),
        ("gsm8k", "[]", "line 2: not a JSON object"),
        ("gsm8k", '{"question": "q"}', "line 2: has no field 'answer'"),
        ("gsm8k", '{"question": "q", "answer": "18"}', "line 2: 'answer' must end in '#### '"),
        ("gsm8k", '{"question": 3, "answer": "#### 18"}', "line 2: 'question' must be text"),
        ("math", '{"problem": "p", "solution": "no box"}', "line 2: needs a field 'answer', or a 'solution'"),
        ("math", '{"solution": "no box"}', "line 2: has no field 'problem' or 'question'"),
        ("code", '{"prompt": "p"}', "line 2: needs 'entry_point' and 'test'"),
        ("code", '{"text": "p", "code": "def f(): 0", "test_list": []}', "line 2: 'test_list' must be a list"),
        ("code", '{"text": "p", "code": "def f(): 0", "test_list": ["g()"]}', "line 2: no function of 'code'"),
        ("code", '{"text": "p", "code": "def", "test_list": ["g()"]}', "line 2: 'code' or 'test_list' is not Python"),
        ("code", '{"problem": "p", "tests": "x"}', "line 2: 'tests' is neither"),
        ("code", '{"problem": "p", "tests": [{"input": "1"}]}', "line 2: each of 'tests'"),
        ("code", '{"problem": "p", "tests": [{"input": "x", "output": 1, "fn_name": "f"}]}', "line 2: arguments of a"),
        ("code", '{"problem": "p", "tests": [{"input": "1", "output": 1, "fn_name": "f("}]}', "line 2: 'f\\(' is not"),
    ],
)
def test_errors_name_line_and_field(
    task: str, line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"gsm8k": GSM8K, "math": MATH, "code": MBPP}[task]
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(good) + "\n" + line + "\n")
    with pytest.raises(SystemExit) as caught:
        main([task, "--input", str(source), "--out", str(tmp_path / "out.jsonl")])
    assert caught.value.code == 2
    assert message.replace("\\", "") in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_an_empty_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text("\n")
    with pytest.raises(SystemExit):
        main(["gsm8k", "--input", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")])
    assert "has no rows" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["sudoku", "countdown"])
def test_the_instruct_prompt_keeps_the_task_and_its_grader(task: str, tmp_path: Path) -> None:
    from bgpo.tasks import countdown, sudoku

    short, long = tmp_path / "short.jsonl", tmp_path / "long.jsonl"
    arguments = [task, "--split", "test", "--rows", "5", "--demonstrations", "--out"]
    main([*arguments, str(short)])
    main([*arguments, str(long), "--prompt", "instruct"])
    grader = compile_grader((sudoku if task == "sudoku" else countdown).grader_spec())
    for a, b in zip(short.read_text().splitlines(), long.read_text().splitlines(), strict=True):
        before, after = json.loads(a), json.loads(b)
        user, assistant = after.pop("messages")
        shown, _ = before.pop("messages")
        assert before == after
        for part in shown["content"].replace("=", ",").split(","):
            assert part in user["content"]
        assert "<answer>" in user["content"]
        assert grader.grade(Sample(assistant["content"]), after).solved
