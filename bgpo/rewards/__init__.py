"""Rewards: graders as data (`GraderSpec`), compiled once, run on many samples. Torch-free.

    grader = compile_grader({"type": "sudoku", "name": "grid"})
    grade = grader.grade(Sample(output_text="..."), {"puzzle": "..."})

The same code grades in training, evaluation and the service. A new grader is a spec class in `bgpo.rewards.spec`, a
file here, and one case in `compile_grader`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, assert_never

from bgpo.rewards.code import CodeGrader
from bgpo.rewards.countdown import CountdownGrader
from bgpo.rewards.grade import Grade, GradeErrorInfo, GradeErrorKind, Grader, Sample
from bgpo.rewards.math import MathGrader
from bgpo.rewards.multi import MultiGrader
from bgpo.rewards.spec import (
    AnyGraderSpec,
    CodeSpec,
    CountdownSpec,
    GraderSpec,
    MathSpec,
    MultiSpec,
    StringCheckSpec,
    SudokuSpec,
    parse_grader_spec,
)
from bgpo.rewards.string_check import StringCheckGrader
from bgpo.rewards.sudoku import SudokuGrader

__all__ = [
    "Grade",
    "GradeErrorInfo",
    "GradeErrorKind",
    "Grader",
    "GraderSpec",
    "Sample",
    "compile_grader",
    "grade_batch",
    "parse_grader_spec",
]


def compile_grader(spec: AnyGraderSpec | Mapping[str, Any]) -> Grader:
    """Make a grader from its specification or wire form.

    Raises:
        SpecError: a wire form that does not validate, or a grader that this machine may not run.
    """
    if isinstance(spec, Mapping):
        spec = parse_grader_spec(spec)
    match spec:
        case StringCheckSpec():
            return StringCheckGrader(spec)
        case SudokuSpec():
            return SudokuGrader(spec)
        case CountdownSpec():
            return CountdownGrader(spec)
        case MathSpec():
            return MathGrader(spec)
        case CodeSpec():
            return CodeGrader(spec)
        case MultiSpec():
            graders = {key: compile_grader(sub) for key, sub in spec.graders.items()}
            return MultiGrader(spec.name, graders, spec.calculate_output)
        case _:
            assert_never(spec)


def grade_batch(grader: Grader, samples: Sequence[Sample], items: Sequence[Mapping[str, Any]]) -> list[Grade]:
    """Grade samples against their rows, in order, as many at a time as the grader allows.

    Raises:
        ValueError: the lengths differ.
    """
    pairs = list(zip(samples, items, strict=True))
    if grader.concurrency == 1 or len(pairs) < 2:
        return [grader.grade(*pair) for pair in pairs]
    with ThreadPoolExecutor(grader.concurrency) as executor:
        return list(executor.map(lambda pair: grader.grade(*pair), pairs))
