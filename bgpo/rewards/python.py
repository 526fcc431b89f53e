"""`python`: the number that a tenant's own `grade(sample, item)` returns.

The source runs in a sandbox, one for each compiled grader: its imports are loaded there once, and each item gets a
freshly forked process that executes the source and calls `grade` (`bgpo.sandbox.inside.tasks.python_grade`). Nothing of
the source is parsed, let alone executed, in this process. A grader that raises, returns no finite number, runs out of
time or memory, or ends its process has failed for that item, which is an error and no zero.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from bgpo.errors import SpecError
from bgpo.rewards.grade import Grade, GradeFault, Grader, Sample, clipped
from bgpo.rewards.sandboxes import MEGABYTE, SharedSandbox, limits, required_wall
from bgpo.rewards.settings import Resources
from bgpo.rewards.spec import PythonSpec
from bgpo.sandbox.sandbox import Result

_TASKS = "python_grade"
MAX_OUTPUT = MEGABYTE
"""Bytes that one call may print."""
MAX_TEXT = 4096
"""Characters of a message or a traceback."""
MAX_MODULES = 64
"""So many of the source's imports are loaded ahead."""


class PythonGrader(Grader):
    """Compiled `python`. A sample is solved from 1, or from the upper end of the range."""

    def __init__(self, spec: PythonSpec, resources: Resources) -> None:
        self.name, self.type = spec.name, spec.type
        self.concurrency = max(1, os.cpu_count() or 1)
        self._source, self._range = spec.source, spec.range
        self._full = spec.range[1] if spec.range is not None else 1.0
        self._limits = limits(resources.settings.sandbox, spec.timeout_seconds, spec.memory_mb, MAX_OUTPUT)
        wall = required_wall(spec.type)
        self._sandbox = SharedSandbox(wall, self._limits, (f"tasks.{_TASKS}",))
        try:
            modules = self._checked()
        except BaseException:
            self._sandbox.close()
            raise
        if modules:  # the sandbox of the check has not loaded them; one that has starts at the first item
            self._sandbox.close()
            self._sandbox = SharedSandbox(wall, self._limits, (f"tasks.{_TASKS}", *modules))

    def close(self) -> None:
        self._sandbox.close()

    def _checked(self) -> list[str]:
        """The modules that the source imports. Raises SpecError when it cannot grade anything."""
        try:
            answer = self._answer("check", {"source": self._source})
        except GradeFault as fault:
            raise SpecError(f"the source cannot be tried: {fault}", "source") from fault
        if not isinstance(answer.get("modules"), list):
            raise SpecError(_text(answer.get("error", "no answer")), "source")
        return [str(name) for name in answer["modules"]][:MAX_MODULES]

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        arguments = {"source": self._source, "sample": _sample(sample), "item": dict(item)}
        answer = self._answer("grade", arguments)
        score = answer.get("score")
        if not isinstance(score, float):
            details = answer.get("details")
            raise GradeFault(
                _text(answer.get("error", "the grader gave no answer")),
                "python_grader_runtime_error",
                _text(details) if details is not None else None,
            )
        score = clipped(score, self._range)
        solved = score >= self._full
        return Grade(score, solved=solved)

    def _answer(self, task: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """What a task returns; a sandbox that has died gets one successor. Raises GradeFault."""
        for _ in range(2):
            result = self._sandbox.get().run(f"{_TASKS}:{task}", arguments)
            if result.ended != "lost":
                break
        else:
            raise GradeFault(f"the sandbox has died: {result.message}", "python_grader_server_error")
        if result.ended == "returned" and isinstance(result.value, dict):
            return result.value
        raise GradeFault(self._reason(result), "python_grader_runtime_error", _tail(result.stderr))

    def _reason(self, result: Result) -> str:
        reasons = {
            "timeout": f"ran longer than {self._limits.seconds:g} s",
            "memory": f"used more than {self._limits.memory // MEGABYTE} MB of memory",
            "output": f"printed more than {MAX_OUTPUT} bytes",
            "exited": f"ended its process (status {result.status})",
        }
        return f"the grader {reasons.get(result.ended, f'gave no answer: {result.message}')}"


def _sample(sample: Sample) -> dict[str, Any]:
    """OpenAI's `sample`: what templates can name, and the choices of a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": sample.output_text}}
    return {**sample.variables(), "choices": [choice]}


def _text(answer: Any) -> str:
    """A text of the grader's process, which may send anything."""
    return str(answer)[:MAX_TEXT]


def _tail(stderr: bytes) -> str | None:
    return stderr[-1000:].decode(errors="replace") or None
