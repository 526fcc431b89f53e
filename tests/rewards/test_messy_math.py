"""`math` on completions as models write them for MATH: boxes of all kinds, LaTeX fractions, units, sets, text."""

from __future__ import annotations

import pytest

from bgpo.rewards import Sample, compile_grader

GRADER = compile_grader({"type": "math", "name": "answer"})

RIGHT = [
    ("\\frac{3}{4}", "We get $\\frac{6}{8} = \\boxed{\\frac{3}{4}}$."),
    ("\\frac{3}{4}", "so the probability is $\\boxed{\\dfrac34}$"),
    ("\\frac{3}{4}", "\\boxed{0.75}"),
    ("\\frac{3}{4}", "\\boxed{3/4}"),
    ("\\frac{3}{4}", "\\boxed{\\displaystyle\\frac{3}{4}}"),
    ("\\frac{3}{4}", "\\[\n\\boxed{\n\\frac{3}{4}\n}\n\\]"),
    ("\\frac{3}{4}", "<answer>\\frac{3}{4}</answer>"),
    ("\\frac{3}{4}", "<answer>$\\tfrac{3}{4}$</answer>"),
    ("\\frac{3}{4}", "The answer is $p = \\frac{3}{4}$."),
    ("-\\frac{1}{2}", "\\boxed{\\frac{-1}{2}}"),
    ("-\\frac{1}{2}", "\\boxed{-0.5}"),
    ("2\\sqrt{3}", "the side is \\boxed{2 \\sqrt{3}}."),
    ("2\\sqrt{3}", "\\boxed{\\sqrt{12}}"),
    ("2\\sqrt{3}", "\\fbox{2\\sqrt{3}}"),
    ("2\\sqrt{3}", "\\boxed{2\\sqrt{3} \\text{ cm}}"),
    ("2\\sqrt{3}", "\\boxed{\\boxed{2\\sqrt{3}}}"),
    ("36", "The angle is $\\boxed{36^\\circ}$."),
    ("36^\\circ", "\\boxed{36}"),
    ("36", "\\boxed{36\\text{ square units}}"),
    ("36", "\\boxed{x = 36}"),
    ("36", "$$\\boxed{36}$$\n\nCheck: $6^2 = 36$, and $35 < 37$."),
    ("36", "\\boxed{6} is the side, so the area is \\boxed{36}"),
    ("36", "**Final Answer**\nThe final answer is $\\boxed{36}$. I hope it is correct."),
    ("11,\\! 111,\\! 111", "\\boxed{11{,}111{,}111}"),
    ("1,001", "\\boxed{1001}"),
    ("\\text{(B)}", "The correct choice is \\boxed{B}."),
    ("\\text{(B)}", "\\boxed{\\textbf{(B)}}"),
    ("\\text{Friday}", "\\boxed{\\text{Friday}}"),
    ("\\text{Friday}", "<answer>friday</answer>"),
    ("(3, -4)", "\\boxed{\\left( 3, -4 \\right)}"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "\\boxed{(3, \\pi/2)}"),
    ("x^2 + 2x + 1", "\\boxed{(x+1)^2}"),
    ("[2, 5)", "\\boxed{[2,5)}"),
    ("(-\\infty, 3]", "\\boxed{\\left(-\\infty,3\\right]}"),
    ("50\\%", "\\boxed{50\\%}"),
    ("50", "\\boxed{50 \\%}"),
    ("3\\frac{1}{2}", "\\boxed{\\frac{7}{2}}"),
    ("12\\pi", "\\boxed{12 \\pi}"),
    ("\\begin{pmatrix} 1 \\\\ -2 \\end{pmatrix}", "\\boxed{\\begin{pmatrix}1\\\\-2\\end{pmatrix}}"),
    ("4", "\\boxed{4.}"),
    ("4", "\\boxed{ 4 }"),
    ("4", "Thus \\boxed{n=4}"),
    ("\\$32,\\!348", "\\boxed{\\$32{,}348}"),
    ("2,3", "\\boxed{2, 3}"),
    ("1+2i", "\\boxed{1 + 2i}"),
    ("5", "\\boxed{5} and then it was cut off: \\boxed{"),
]
WRONG = [
    ("\\frac{3}{4}", "\\boxed{\\frac{4}{3}}"),
    ("\\frac{3}{4}", "\\boxed{34}"),
    ("\\frac{3}{4}", "\\boxed{3} over \\boxed{4}"),
    ("36", "\\boxed{36} or rather \\boxed{35}"),
    ("36", "\\boxed{3} 6"),
    ("2\\sqrt{3}", "\\boxed{2\\sqrt{}3}"),
    ("2\\sqrt{3}", "\\boxed{23}"),
    ("(3, -4)", "\\boxed{(3, 4)}"),
    ("[2, 5)", "\\boxed{(2, 5)}"),
    ("\\text{(B)}", "\\boxed{\\text{(A) or (B)}}"),
    ("12\\pi", "\\boxed{12}"),
    ("4", "\\boxed{}"),
    ("4", "\\boxed"),
    ("x^2 + 2x + 1", "\\boxed{x^2 + 1}"),
    ("4", "\\boxed{\\text{4 or 5}}"),
]


@pytest.mark.parametrize(("reference", "text"), RIGHT)
def test_right(reference: str, text: str) -> None:
    grade = GRADER.grade(Sample(text), {"answer": f"Hence $\\boxed{{{reference}}}$."})
    assert (grade.score, grade.error) == (1.0, None)


@pytest.mark.parametrize(("reference", "text"), WRONG)
def test_wrong(reference: str, text: str) -> None:
    grade = GRADER.grade(Sample(text), {"answer": reference})
    assert (grade.score, grade.error) == (0.0, None)
