"""`math` on completions as models write them for GSM8K: units, currency, separators, percent, chatter, cut-off tags."""

from __future__ import annotations

import pytest

from bgpo.rewards import Sample, compile_grader

GRADER = compile_grader({"type": "math", "name": "answer"})

RIGHT = [
    ("18", "Janet sells 16 - 3 - 4 = 9 eggs a day.\nShe makes 9 * 2 = $18 every day at the market.\n#### 18"),
    ("18", "16 - 3 = 13\n13 - 4 = 9\n9 x $2 = $18\n\n**Answer: $18**"),
    ("18", "<reasoning>\n16 eggs, 3 eaten, 4 baked.\n</reasoning>\n<answer>\n$18.00\n</answer>"),
    ("18", "<reasoning>\nShe sells 9 eggs.\n<answer>\n18\n</answer>"),
    ("18", "<answer>18 dollars per day</answer> I hope this helps!"),
    ("18", "So she makes 18 dollars.\n</reasoning>\n<answer>18"),
    ("18", "The answer is: 18."),
    ("18", "The answer is: 18.\n\nTo check: 9 eggs at $2 each. That is what we wanted."),
    ("18", "Therefore, the final answer is \\boxed{18}. Let me know if you have 2 or more questions."),
    ("18", "First I thought \\boxed{26}. But 4 go into muffins, so the answer is $\\boxed{18}$."),
    ("18", "\\boxed{\\$18}"),
    ("18", "\\boxed{18 \\text{ dollars}}"),
    ("18", "<answer>The answer is \\boxed{18}.</answer>"),
    ("70000", "The profit is 200,000 - 130,000 = $70,000."),
    ("70000", "#### 70,000"),
    ("70000", "He makes a profit of **$70,000**."),
    ("1200", "It takes 1 200 seconds. \\boxed{1{,}200}"),
    ("25", "That leaves 1 - 0.75 = 0.25 of them, i.e. 25%."),
    ("25", "<answer>25\\%</answer>"),
    ("0.5", "He ate 1/2 of the cake."),
    ("3.5", "<answer>3 1/2 hours</answer>"),
    ("3", "1. A robe takes 2 bolts of blue.\n2. Half that is 1 bolt of white.\n3. In total 2 + 1 = 3 bolts."),
    ("-5", "The temperature is 10 \u2212 15 = \u22125 degrees."),
    ("-5", "#### \u22125"),
    ("45", "The total is \u20ac45."),
    ("45", "He spends \u00a345 a week"),
    ("540", "He runs 3*3=9 times, so 9*60 = <<9*60=540>>540 meters a week.\n#### 540"),
    ("20", "```\ncups = 60 - 15 - 25\nprint(cups)  # 20\n```\nWendi needs to give 20 cups.\n#### 20"),
    ("64", "8 * $5 + 8 * $3 = $40 + $24 = $64.00 in total."),
    ("260", "He drove 80 + 180 = 260 miles from home"),
    ("160", "The download takes **160** minutes.\n\nAnswer: **160 minutes**"),
    ("104", "Total = 104\n\n<answer>104</answer>\n\n<answer>"),
    ("7", "It takes seven days: $\\text{days} = \\frac{42}{6} = 7$."),
    ("7", "The answer is $7$."),
    ("2.5", "Each one gets \\( \\frac{10}{4} = 2.5 \\) kg."),
    ("1000000", "She has 1,000,000 subscribers!"),
    ("12", "So x = 12."),
    ("12", "The answer is 3 * 4 = 12 apples for 2 people. Is there anything else, say 5 pears?"),
    ("12", "The final answer is **12**.\n\n(3 rows of 4)"),
    ("12", "Answer: $\\frac{24}{2} = 12$, as 24 is twice 12"),
    ("12", "The answer is not obvious. We count: 5, 7, 12"),
    ("12", "<answer>7</answer> no <answer> 12 <answer>"),
    ("15", "\\[ 5 \\times 3 = 15 \\]\nSo there are \\( \\boxed{15} \\) apples."),
]
WRONG = [
    ("18", "The answer is 26."),
    ("18", "16 - 3 - 4 = 9, and 9 * 2 = 18. No wait, she sells 13 eggs.\n#### 26"),
    ("18", "<answer>26</answer> or maybe 18"),
    ("18", "\\boxed{26} since 18 would be wrong"),
    ("70000", "#### 70.000.1"),
    ("70000", "He makes $7,000"),
    ("1000", "It is 1,00"),
    ("18", "I do not know."),
    ("18", "<answer></answer>"),
    ("18", "18 or 26"),
    ("5", "#### -5"),
    ("3", "3 1/2 hours"),
    ("180", "#### 18 0 0"),
]


@pytest.mark.parametrize(("reference", "text"), RIGHT)
def test_right(reference: str, text: str) -> None:
    assert GRADER.grade(Sample(text), {"answer": f"Some steps.\n#### {reference}"}).score == 1.0


@pytest.mark.parametrize(("reference", "text"), WRONG)
def test_wrong(reference: str, text: str) -> None:
    grade = GRADER.grade(Sample(text), {"answer": reference})
    assert (grade.score, grade.error) == (0.0, None)
