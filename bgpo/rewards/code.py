"""`code`: the program in a completion, run against tests.

The program is the last fenced block (inside the last `<answer>` tag, if there is one), else the whole answer. A test is
the source of assertions, or an input with the output it should give. Each runs in processes of its own with limits on
time, memory and files (`isolation`). A program never sees what is expected: the assertions run in another process,
which calls it for plain values (`children.code_child`), so that neither an always-equal object nor a patched builtin
nor an early exit passes. That is isolation against accidents and cheating; it is no wall against an attacker
(docs/rewards.md), hence the operator's consent in BGPO_ALLOW_UNSANDBOXED.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from bgpo.errors import SpecError
from bgpo.rewards.extract import answer_text
from bgpo.rewards.grade import Grade, GradeFault, Grader, Sample, rendered
from bgpo.rewards.isolation import Case, Limits, Outcome, StartError, UnusableTest, run_assertions, run_case
from bgpo.rewards.spec import CodeSpec
from bgpo.rewards.templates import parse_template

CONSENT = "BGPO_ALLOW_UNSANDBOXED"
MAX_PROGRAM = 32_768
"""Characters; less than what is searched of a completion, so that a program that begins before that is never cut."""
MAX_TESTS = 200
MAX_TIMEOUTS = 2
"""After so many tests that ran out of time the rest fail unrun: an endless loop must not cost its limit each time."""

_FENCE = re.compile(r"^[ \t]*```[ \t]*([A-Za-z0-9_+-]*)[^\n]*\n", re.MULTILINE)
_PYTHON = frozenset({"", "python", "python3", "py"})


class CodeGrader(Grader):
    """Compiled `code`. Metric `tests_passed` is the share of the tests; `details` has a line for each."""

    metric_names = ("solved", "tests_passed")

    def __init__(self, spec: CodeSpec) -> None:
        if os.environ.get(CONSENT) != "1":
            raise SpecError(
                "the code grader runs programs that the model wrote, and this version has no sandbox for them: "
                f"set {CONSENT}=1 on a machine where that is acceptable (docs/rewards.md), or use another grader",
                "type",
            )
        self.name, self.type = spec.name, spec.type
        self.concurrency = max(1, os.cpu_count() or 1)
        self._tests = parse_template(spec.tests)
        self._prefix = parse_template(spec.prefix) if spec.prefix is not None else None
        self._entry_point = parse_template(spec.entry_point) if spec.entry_point is not None else None
        self._input = parse_template(spec.input)
        self._fraction = spec.reward == "fraction"
        self._limits = Limits(spec.timeout_seconds, spec.memory_mb * 2**20)

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        tests = parse_tests(rendered(self._tests, sample, item))
        prefix = rendered(self._prefix, sample, item) if self._prefix is not None else ""
        entry_point = rendered(self._entry_point, sample, item) if self._entry_point is not None else ""
        program = extract_program(rendered(self._input, sample, item))
        if program is None:
            return self._result([Outcome(False, "no program")] * len(tests))
        program = f"{prefix}\n\n{program}\n" if prefix else program
        outcomes: list[Outcome] = []
        for test in tests:
            if sum(outcome.timed_out for outcome in outcomes) >= MAX_TIMEOUTS:
                outcomes.append(Outcome(False, f"not run after {MAX_TIMEOUTS} timeouts"))
                continue
            try:
                if isinstance(test, Case):
                    outcomes.append(run_case(program, test, self._limits))
                else:
                    outcomes.append(run_assertions(program, test, entry_point, self._limits))
            except StartError as error:
                raise GradeFault(str(error), "python_grader_server_error") from error
            except UnusableTest as error:
                raise GradeFault(f"test {len(outcomes) + 1}: {error}") from error
        return self._result(outcomes)

    def _result(self, outcomes: list[Outcome]) -> Grade:
        passed = sum(outcome.passed for outcome in outcomes) / len(outcomes)
        solved = passed == 1.0
        score = passed if self._fraction else float(solved)
        lines = (
            f"test {number}: {'passed' if outcome.passed else 'failed: ' + outcome.message}"
            for number, outcome in enumerate(outcomes, start=1)
        )
        metrics = {"solved": float(solved), "tests_passed": passed}
        return Grade(score, solved=solved, metrics=metrics, details=tuple(lines))


def parse_tests(text: str) -> list[str | Case]:
    """The tests of a row: a JSON list, or the source of one test. Raises GradeFault."""
    try:
        tests = json.loads(text)
    except (ValueError, RecursionError):
        tests = [text]
    if not isinstance(tests, list) or not 1 <= len(tests) <= MAX_TESTS:
        raise GradeFault(f"tests must be a list of 1 to {MAX_TESTS} tests")
    return [_test(test, number) for number, test in enumerate(tests, start=1)]


def _test(test: Any, number: int) -> str | Case:
    if isinstance(test, str) and test.strip():
        return test
    if isinstance(test, dict) and isinstance(test.get("input"), str) and isinstance(test.get("output"), str):
        return Case(test["input"], test["output"])
    raise GradeFault(f'test {number} must be source text, or {{"input": text, "output": text}}')


def extract_program(text: str) -> str | None:
    """The program in a completion; None when it has none, or one longer than MAX_PROGRAM."""
    text = answer_text(text)
    program = text
    fences = list(_FENCE.finditer(text + "\n"))
    for opening in reversed(fences[::2]):  # they alternate: opening, closing
        if opening[1].lower() in _PYTHON:
            end = next((fence.start() for fence in fences if fence.start() > opening.start()), len(text))
            program = text[opening.end() : end]
            break
    return program if program.strip() and len(program) <= MAX_PROGRAM and "\0" not in program else None
