"""`sudoku` on completions as models write them: tables, labels, fences, bold digits, boxes, several grids."""

from __future__ import annotations

import pytest

from bgpo.rewards import Sample, compile_grader

GRADER = compile_grader({"type": "sudoku", "name": "grid", "reward": "solved"})
PUZZLE = "3102200002100320"
SOLUTION = "3142243142131324"
ROWS = ("3142", "2431", "4213", "1324")
GRID = "\n".join(ROWS)
SPACED = "\n".join(" ".join(row) for row in ROWS)

RIGHT = {
    "one line": SOLUTION,
    "sentence": f"The solution is {SOLUTION}.",
    "answer tag": f"<reasoning>\nRow 1 misses 4.\n</reasoning>\n<answer>\n{SOLUTION}\n</answer>",
    "unclosed tag": f"<reasoning>easy</reasoning>\n<answer>\n{GRID}",
    "tag closed twice": f"<answer>{GRID}</answer></answer>",
    "rows": GRID,
    "spaced rows": SPACED,
    "commas": "\n".join(", ".join(row) for row in ROWS),
    "lists": str([[int(digit) for digit in row] for row in ROWS]),
    "lists over lines": "[\n" + ",\n".join(f"  [{', '.join(row)}]" for row in ROWS) + "\n]",
    "json": '{"grid": [' + ", ".join(f'"{row}"' for row in ROWS) + "]}",
    "fence": f"```\n{SPACED}\n```",
    "fence with a language": f"Here:\n\n```text\n{GRID}\n```\n\nAll rows, columns and boxes hold 1-4.",
    "markdown table": "| | | | |\n|---|---|---|---|\n" + "\n".join("| " + " | ".join(row) + " |" for row in ROWS),
    "bold digits": "\n".join(" ".join(f"**{digit}**" for digit in row) for row in ROWS),
    "ruled": "+-----+-----+\n| 3 1 | 4 2 |\n| 2 4 | 3 1 |\n+-----+-----+\n| 4 2 | 1 3 |\n| 1 3 | 2 4 |\n+-----+-----+",
    "blank lines": "\n\n".join(ROWS),
    "windows line ends": GRID.replace("\n", "\r\n"),
    "slashes": "/".join(ROWS),
    "labelled rows": "\n".join(f"Row {number}: {' '.join(row)}" for number, row in enumerate(ROWS, 1)),
    "labelled compact rows": "\n".join(f"Row {number}: {row}" for number, row in enumerate(ROWS, 1)),
    "bulleted labels": "\n".join(f"- **Row {number}:** {', '.join(row)}" for number, row in enumerate(ROWS, 1)),
    "labels R1": "\n".join(f"R{number}: {row}" for number, row in enumerate(ROWS, 1)),
    "numbered rows": "\n".join(f"{number}. {' '.join(row)}" for number, row in enumerate(ROWS, 1)),
    "box": f"\\boxed{{{SOLUTION}}}",
    "latex array": "\\begin{array}{cccc}\n" + " \\\\\n".join(" & ".join(row) for row in ROWS) + "\n\\end{array}",
    "latex matrix in a box": "\\boxed{\\begin{bmatrix} "
    + " \\\\ ".join(" & ".join(row) for row in ROWS)
    + " \\end{bmatrix}}",
    "html": "<br>".join(ROWS),
    "puzzle first": f"Puzzle:\n3102\n2000\n0210\n0320\n\nSolution:\n{GRID}",
    "puzzle with dots first": f"3 1 . 2\n2 . . .\n. 2 1 .\n. 3 2 .\n\n{SPACED}",
    "steps first": f"Step 1: cell (1,3) is 4.\nStep 2: row 2 needs 4, 3 and 1.\nStep 3: done.\n\n{GRID}",
    "partial grid first": f"3142\n2431\n0210\n0320\nthen\n{GRID}",
    "wrong grid first": f"1234\n3412\n2143\n4321\nThat breaks a given. Instead:\n{GRID}",
    "chatter behind": f"{GRID}\n\nEach row has 1, 2, 3, 4; 4 boxes checked.",
    "prompt repeated": f"{PUZZLE} -> {SOLUTION}",
}
WRONG = {
    "puzzle": PUZZLE,
    "fifteen digits": SOLUTION[:-1],
    "seventeen digits": SOLUTION + "1",
    "three rows": "\n".join(ROWS[:3]),
    "other grid last": f"{GRID}\nor\n1234\n3412\n2143\n4321",
    "other grid in the tag": f"{GRID}\n<answer>1234341221434321</answer>",
    "empty tag": f"{GRID}\n<answer></answer>",
    "words": "three one four two, two four three one, four two one three, one three two four",
    "zeros left": GRID.replace("4", "0"),
    "nothing": "",
    "date": "2026-11-28 10:30:00 2026",
}


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_right(text: str) -> None:
    assert GRADER.grade(Sample(text), {"puzzle": PUZZLE}).score == 1.0


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_wrong(text: str) -> None:
    grade = GRADER.grade(Sample(text), {"puzzle": PUZZLE})
    assert (grade.score, grade.error) == (0.0, None)
