"""`math`: the final answer of a completion equals the reference (GSM8K, MATH and the like).

The answer is the last `\\boxed{}`, nested braces included; else what stands in the last `<answer>` tag or behind the
last `####`; else the number behind the last "answer is"; else the last number of the text. Numbers are compared
exactly: "1,000" is 1000, 3.50 is not 50, 1/2 is 0.5. Words are compared as words. The rest, from `\\sqrt{8}` to
intervals, goes to math-verify in a process of its own (`verifier`). The reference may be the bare answer, a MATH
solution with a box or a GSM8K solution with `####`.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Mapping
from typing import Any

from bgpo.rewards.extract import MAX_TEXT, answer_text, boxed
from bgpo.rewards.grade import Grade, GradeFault, Grader, Sample, rendered
from bgpo.rewards.numbers import parse_number, plain_words
from bgpo.rewards.spec import MathSpec
from bgpo.rewards.templates import parse_template
from bgpo.rewards.verifier import VerifierError, shared_verifier

MAX_ANSWER = 400
"""Characters; a longer text is no final answer."""
_MARKER = "####"
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.,\\])(?:(?<![0-9)\]}])[-\u2212])?\$?"
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?=\.[0-9]))(?:\.[0-9]+)?(?:[ ]?/[ ]?[0-9]+(?![0-9.]))?(?:[ ]?\\?%)?"
)
_STATED = re.compile(r"\banswer[*_]{0,3}[ \t]?(?:is|:|=)(?P<said>[^\n]{1,400})", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_WORD = re.compile(r"[A-Za-z]{2,}")
_FORMULA = re.compile(r"\$([^$\n]{1,400})\$|\\\((.{1,400}?)\\\)|\\\[(.{1,400}?)\\\]", re.DOTALL)


class MathGrader(Grader):
    """Compiled `math`. Metric `answered`: there is a final answer, whatever it is worth."""

    metric_names = ("solved", "answered")

    def __init__(self, spec: MathSpec) -> None:
        self.name, self.type = spec.name, spec.type
        self.concurrency = max(1, min(4, os.cpu_count() or 1))
        self._input = parse_template(spec.input)
        self._reference = parse_template(spec.reference)
        self._boxed_only = spec.answer == "boxed"

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        reference = reference_answer(rendered(self._reference, sample, item))
        answer = extract_answer(rendered(self._input, sample, item), self._boxed_only)
        try:
            solved = answer is not None and equivalent(reference, answer)
        except VerifierError as error:
            raise GradeFault(str(error)) from error
        metrics = {"solved": float(solved), "answered": float(answer is not None)}
        return Grade(float(solved), solved=solved, metrics=metrics)


def reference_answer(text: str) -> str:
    """The answer in a reference. Raises GradeFault without one."""
    answer = boxed(text)
    if answer is None:
        answer = text.rpartition(_MARKER)[2].strip()
    if not answer.strip() or len(answer) > MAX_ANSWER:
        raise GradeFault(f"reference must be an answer of 1 to {MAX_ANSWER} characters, got {text[:80]!r}")
    return answer


def extract_answer(text: str, boxed_only: bool = False) -> str | None:
    """The final answer of a completion; None without one."""
    text = text[-MAX_TEXT:]
    inside = answer_text(text)
    answer = boxed(inside)
    if answer is None and not boxed_only:
        tagged = inside if "<answer>" in text else None
        if tagged is None and _MARKER in text:
            tagged = text.rpartition(_MARKER)[2].strip().partition("\n")[0]
        if tagged is not None and "\n" not in tagged.strip() and len(tagged) <= MAX_ANSWER and _is_bare(tagged):
            answer = tagged
        else:
            answer = _stated_value(inside) or _last_value(inside)
    answer = answer.strip() if answer is not None else ""
    return answer if 0 < len(answer) <= MAX_ANSWER else None


def _is_bare(text: str) -> bool:
    """Whether a tagged text is the answer itself and not a sentence about it."""
    return parse_number(text) is not None or "\\" in text or len(_WORD.findall(text)) <= 2


def _stated_value(text: str) -> str | None:
    """The first number behind the last "answer is" or "Answer:", right of the last `=` in its sentence."""
    stated = _last(_STATED, text)
    if stated is None:
        return None
    sentence = _SENTENCE_END.split(stated["said"], maxsplit=1)[0]
    formula = _FORMULA.search(sentence)
    if formula is not None and "\\" in formula[0]:
        return _last_value(formula[0])
    number = _NUMBER.search(sentence.rpartition("=")[2])
    return number[0] if number is not None else None


def _last_value(text: str) -> str | None:
    """The last number of a text, or the formula with a LaTeX command that it stands in, right of its last `=`."""
    number = _last(_NUMBER, text)
    formula = _last(_FORMULA, text)
    if formula is not None and (number is None or number.start() < formula.end()):
        content: str = formula[1] or formula[2] or formula[3]
        if "\\" in content:
            return content.rpartition("=")[2]
    return number[0] if number is not None else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def equivalent(reference: str, answer: str) -> bool:
    """Whether two answers are the same. Raises VerifierError as `Verifier.equal`."""
    gold, number = parse_number(reference), parse_number(answer)
    if gold is not None and number is not None:
        return gold.equals(number)
    if plain_words(reference) == plain_words(answer):
        return True
    return shared_verifier().equal(reference, answer)
