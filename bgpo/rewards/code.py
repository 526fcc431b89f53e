"""`code`: the program in a completion, run against tests.

The program is the last fenced block (inside the last `<answer>` tag, if there is one), else the whole answer. A test is
the source of assertions, a file for pytest, or an input with the output it should give. Each completion has a sandbox
to itself from a pool that is started ahead, and each test freshly forked processes. A program never sees what is
expected: the tests run in another sandbox, which asks the program for plain values (`bgpo.rewards.programs`), so that
neither an always-equal object nor a patched builtin nor an early exit passes.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from bgpo.errors import SandboxError
from bgpo.rewards.extract import answer_text
from bgpo.rewards.grade import Grade, GradeFault, Grader, Sample, rendered
from bgpo.rewards.programs import (
    BATCH,
    CHECKER_MODULES,
    PROGRAM_MODULES,
    PYTEST_MODULES,
    Assertions,
    Case,
    Outcome,
    Program,
    PytestFile,
    StartError,
    Test,
    UnusableTest,
)
from bgpo.rewards.sandboxes import MEGABYTE, SharedSandbox, limits, required_wall
from bgpo.rewards.settings import Resources
from bgpo.rewards.spec import CodeSpec
from bgpo.rewards.templates import parse_template
from bgpo.sandbox.pool import Pool

MAX_PROGRAM = 32_768
"""Characters; less than what is searched of a completion, so that a program that begins before that is never cut."""
MAX_TESTS = 200
MAX_OUTPUT = 4 * MEGABYTE
"""Bytes that a program may write in a test."""
DISK_MB = 16
"""Of files that a program writes."""
POOL = 16
"""Sandboxes that wait for a program: started while the model generates, they are there when a batch comes."""
MAX_TIMEOUTS = 2
"""After so many tests that ran out of time the rest fail unrun: an endless loop must not cost its limit each time."""

_FENCE = re.compile(r"^[ \t]*```[ \t]*([A-Za-z0-9_+-]*)[^\n]*\n", re.MULTILINE)
_PYTHON = frozenset({"", "python", "python3", "py"})


class CodeGrader(Grader):
    """Compiled `code`. Metric `tests_passed` is the share of the tests; `details` has a line for each."""

    metric_names = ("solved", "tests_passed")

    def __init__(self, spec: CodeSpec, resources: Resources) -> None:
        self.name, self.type = spec.name, spec.type
        self.concurrency = max(1, os.cpu_count() or 1)
        self._tests = parse_template(spec.tests)
        self._prefix = parse_template(spec.prefix) if spec.prefix is not None else None
        self._entry_point = parse_template(spec.entry_point) if spec.entry_point is not None else None
        self._input = parse_template(spec.input)
        self._fraction = spec.reward == "fraction"
        bounds = limits(resources.settings.sandbox, spec.timeout_seconds, spec.memory_mb, MAX_OUTPUT, DISK_MB)
        self._seconds = bounds.seconds
        wall = required_wall(spec.type)
        batch = replace(bounds, seconds=bounds.seconds * BATCH + 1)  # each test has its own limit within
        self._checker = SharedSandbox(wall, batch, CHECKER_MODULES)
        self._pytest = SharedSandbox(wall, bounds, PYTEST_MODULES)  # apart: most rows never need it
        self._make_pool: Callable[[], Pool] = lambda: Pool(wall, batch, POOL, PROGRAM_MODULES)
        self._pool: Pool | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            if self._pool is not None:
                self._pool.close()
                self._pool = None
        self._checker.close()
        self._pytest.close()

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        tests = parse_tests(rendered(self._tests, sample, item))
        prefix = rendered(self._prefix, sample, item) if self._prefix is not None else ""
        entry_point = rendered(self._entry_point, sample, item) if self._entry_point is not None else ""
        program = extract_program(rendered(self._input, sample, item))
        if program is None:
            return self._result([[Outcome(False, "no program")]] * len(tests))
        program = f"{prefix}\n\n{program}\n" if prefix else program
        for _ in range(2):  # a sandbox that has died is replaced once
            try:
                return self._result(self._outcomes(program, entry_point, tests))
            except (StartError, SandboxError) as error:
                failure = error
        raise GradeFault(str(failure), "python_grader_server_error") from failure

    def _programs(self) -> Pool:
        """The pool, started at its first use: a grader that is only validated needs none."""
        with self._lock:
            if self._pool is None:
                self._pool = self._make_pool()
            return self._pool

    def _outcomes(self, source: str, entry_point: str, tests: list[Test]) -> list[list[Outcome]]:
        """Of each test its outcomes, in a sandbox for this program."""
        groups: list[list[Outcome]] = []
        with self._programs().take() as sandbox:
            program = Program(sandbox, source, entry_point, self._seconds)
            while rest := tests[len(groups) :]:
                patience = MAX_TIMEOUTS - sum(outcome.timed_out for group in groups for outcome in group)
                if patience <= 0:
                    return groups + [[Outcome(False, f"not run after {MAX_TIMEOUTS} timeouts")]] * len(rest)
                try:
                    groups += self._next(program, rest, patience)
                except UnusableTest as error:
                    raise GradeFault(f"test {len(groups) + error.position + 1}: {error}") from error
        return groups

    def _next(self, program: Program, tests: list[Test], patience: int) -> list[list[Outcome]]:
        """Of the first test, or the first few that can go together."""
        first = tests[0]
        if isinstance(first, Case):
            return [[program.case(first)]]
        if isinstance(first, PytestFile):
            return [program.pytest(first, self._pytest)]
        together: list[Assertions] = []
        for test in tests[:BATCH]:
            if not isinstance(test, Assertions):
                break
            together.append(test)
        return [[outcome] for outcome in program.assertions(together, self._checker, patience)]

    def _result(self, groups: list[list[Outcome]]) -> Grade:
        outcomes = [(number, outcome) for number, group in enumerate(groups, start=1) for outcome in group]
        passed = sum(outcome.passed for _, outcome in outcomes) / len(outcomes)
        solved = passed == 1.0
        score = passed if self._fraction else float(solved)
        lines = (
            f"test {number}{f' ({outcome.name})' if outcome.name else ''}: "
            + ("passed" if outcome.passed else "failed: " + outcome.message)
            for number, outcome in outcomes
        )
        metrics = {"solved": float(solved), "tests_passed": passed}
        return Grade(score, solved=solved, metrics=metrics, details=tuple(lines))


def parse_tests(text: str) -> list[Test]:
    """The tests of a row: a JSON list, or the source of one test. Raises GradeFault."""
    try:
        tests = json.loads(text)
    except (ValueError, RecursionError):
        tests = [text]
    if not isinstance(tests, list) or not 1 <= len(tests) <= MAX_TESTS:
        raise GradeFault(f"tests must be a list of 1 to {MAX_TESTS} tests")
    return [_test(test, number) for number, test in enumerate(tests, start=1)]


def _test(test: Any, number: int) -> Test:
    if isinstance(test, str) and test.strip():
        return Assertions(test)
    if isinstance(test, dict) and isinstance(test.get("input"), str) and isinstance(test.get("output"), str):
        return Case(test["input"], test["output"])
    if isinstance(test, dict) and isinstance(test.get("pytest"), str) and test["pytest"].strip():
        return PytestFile(test["pytest"])
    raise GradeFault(
        f'test {number} must be source text, {{"input": text, "output": text}} or {{"pytest": source of a file}}'
    )


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
