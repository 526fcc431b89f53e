"""`countdown` on completions as models write them: step lists, claims behind `=`, LaTeX, fences, cut-off tags."""

from __future__ import annotations

import pytest

from bgpo.rewards import Sample, compile_grader

GRADER = compile_grader({"type": "countdown", "name": "reach"})
ITEM = {"numbers": [19, 36, 55, 7], "target": 65}  # 55 + 36 - 7 - 19 = 65

RIGHT = [
    "55 + 36 - 7 - 19",
    "55 + 36 - 7 - 19 = 65",
    "65 = 55 + 36 - 7 - 19",
    "(55 + 36) - (7 + 19) = 91 - 26 = 65",
    "<answer>55 + 36 - 7 - 19</answer>",
    "<answer> (55+36)-(7+19) = 65 </answer>",
    "<answer>\n55+36-7-19\n</answer>\n</answer>",
    "<reasoning>\n55 + 36 = 91\n91 - 19 = 72\n72 - 7 = 65\n</reasoning>\n<answer>\n55 + 36 - 19 - 7\n</answer>",
    "<reasoning>55+36=91, 91-7=84, 84-19=65</reasoning>\n<answer>55+36-7-19",
    "<think>19 * 7 = 133 is too large.</think> The equation is 55 + 36 - 7 - 19.",
    "\\boxed{55 + 36 - 7 - 19}",
    "<answer>\\boxed{55 + 36 - 7 - 19 = 65}</answer>",
    "$$\\boxed{(55 + 36) - (7 + 19)}$$",
    "\\( 55 + 36 - 7 - 19 = 65 \\)",
    "**55 + 36 - 7 - 19 = 65**",
    "`55 + 36 - 7 - 19`",
    "```\n55 + 36 - 7 - 19\n```",
    "```python\nresult = 55 + 36 - 7 - 19\nprint(result)\n```",
    "Step 1: 55 + 36 = 91\nStep 2: 91 - 7 = 84\nStep 3: 84 - 19 = 65\nSo: 55 + 36 - 7 - 19 = 65",
    "1. 55 + 36 = 91\n2. 7 + 19 = 26\n3. 91 - 26 = 65\n\nFinal: (55 + 36) - (7 + 19)",
    "Let me try:\n- 55 - 36 + 19 + 7 = 45 (too small)\n- 55 + 36 - 19 - 7 = 65 (correct!)\n\nDone.",
    "55 \u2212 7 + 36 \u2212 19 = 65",
    "55 \u2013 7 + 36 \u2013 19 = 65",
    "Answer: 55 + 36 - 7 - 19. All four numbers, each used once.",
    "Using 55, 36, 19 and 7: 55+36-7-19=65 \u2713",
    "The answer is ((55 + 36) - 19) - 7 = 65, which uses each of 55, 36, 19, 7 exactly once.",
    "[55 + 36] - [7 + 19]",
    "{55 + 36} - {7 + 19}",
    "<answer>55 + 36 - 7 - 19 = 65.</answer>",
    "<answer>x = 55 + 36 - 7 - 19</answer>",
    "<answer>55 + 36 - 7 - 19 \\\\ = 65</answer>",
    "<answer>\\text{55 + 36 - 7 - 19}</answer>",
]
WRONG = [
    "",
    "<answer></answer>",
    "<answer>65</answer>",
    "55 + 36 = 91\n91 - 7 = 84\n84 - 19 = 65",  # steps are no expression of all numbers
    "55 + 10",
    "55 + 36 - 26",
    "55 + 36 - 7 - 19 - 0",
    "55 + 36 - 7 + 19 = 65",
    "55 + 36 - 7 - 19, no: 55 + 36 + 7 - 19 = 65",
    "<answer>55 + 36 - 7 = 84</answer> 55 + 36 - 7 - 19",
    "\\boxed{55 + 36 - 7 + 19 = 65}",
    "55 + 36 - 7 - 1 9",
    "5 5 + 36 - 7 - 19",
    "55 + 36 - -7 - 19 - 14 + 7",
    "2 ** 55 + 36 - 7 - 19",
    "x * 55 + 36 - 7 - 19",
    "int('55') + 36 - 7 - 19",
    "55 + 36 - 7 - 19 + 7 - 7",
]


@pytest.mark.parametrize("text", RIGHT)
def test_right(text: str) -> None:
    assert GRADER.grade(Sample(text), ITEM).score == 1.0


@pytest.mark.parametrize("text", WRONG)
def test_wrong(text: str) -> None:
    grade = GRADER.grade(Sample(text), ITEM)
    assert (grade.score, grade.error) == (0.0, None)


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{3 \\times (8 - 4) \\times 2 = 24}",
        "3 \u00d7 (8 \u2212 4) \u00d7 2",
        "3 x (8 - 4) x 2 = 24",
        "3x(8-4)x2",
        "3 * (8 - 4) * 2 = 24",
        "3 \u22c5 (8 - 4) \u22c5 2",
        "3 \u2217 (8 - 4) \u2217 2",
        "$3 \\cdot \\left(8 - 4\\right) \\cdot 2$",
        "\\frac{8 - 4}{1} is 4. So \\[ 3 \\cdot 2 \\cdot (8 - 4) = 24 \\]",
        "3 \\ast 2 \\ast (8 - 4)",
        "**Answer:** 3\\*2\\*(8-4)",
        "**3 * 2 * (8 - 4) = 24**",
    ],
)
def test_signs_of_products(text: str) -> None:
    assert GRADER.grade(Sample(text), {"numbers": [3, 8, 4, 2], "target": 24}).score == 1.0
