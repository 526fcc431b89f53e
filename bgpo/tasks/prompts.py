"""Prompts for models that read instructions, in the layout of the public recipes (d1, LLaDA) and in our own words.

One user message: the task, then the form of the answer, `<reasoning>` before `<answer>`, where a mathematical answer
stands in `\\boxed{}` and a program in a fenced block. The graders find the answer in that form and in others. The short
prompts of the built-in tasks, for models that read characters, are in `bgpo.tasks.sudoku` and `bgpo.tasks.countdown`.
"""

from __future__ import annotations

from typing import Any

from bgpo.tasks.rows import Row

_FORM = """Write exactly this form:
<reasoning>
your reasoning
</reasoning>
<answer>
{answer}
</answer>"""


def sudoku(puzzle: str) -> str:
    """The prompt of a 4x4 puzzle of 16 digits."""
    return (
        "Fill in this 4x4 Sudoku. It is given as 16 digits, row by row from the top left, and 0 is an empty cell. "
        "In the solution every row, every column and every 2x2 box has each of the digits 1, 2, 3 and 4 once, and the "
        f"digits that are given stay.\n\nSudoku: {puzzle}\n\n" + _FORM.format(answer="the 16 digits of the solution")
    )


def countdown(numbers: list[int], target: int) -> str:
    """The prompt of a Countdown task."""
    return (
        "Find an arithmetic expression with the value of the target. Use each of the numbers exactly once, and the "
        "operations +, -, * and / with parentheses where needed. Give the expression alone, without an equals sign.\n\n"
        f"Numbers: {numbers}\nTarget: {target}\n\n" + _FORM.format(answer="\\boxed{the expression}")
    )


def math(problem: str) -> str:
    """The prompt of a mathematical problem."""
    return f"{problem.strip()}\n\nReason step by step, then state the final answer. " + _FORM.format(
        answer="\\boxed{the final answer}"
    )


def code(problem: str) -> str:
    """The prompt of a programming problem."""
    return f"{problem.strip()}\n\nReason first, then give the whole program in Python. " + _FORM.format(
        answer="```python\nthe program\n```"
    )


def instruct(task: str, row: Row) -> Row:
    """A row of the built-in Sudoku or Countdown task with the long prompt; a demonstration in the form asked for."""
    prompt = sudoku(row["puzzle"]) if task == "sudoku" else countdown(row["numbers"], row["target"])
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    for message in row["messages"][1:]:
        answer = message["content"] if task == "sudoku" else f"\\boxed{{{message['content']}}}"
        messages.append({**message, "content": f"<answer>\n{answer}\n</answer>"})
    return {**row, "messages": messages}
