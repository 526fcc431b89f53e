"""Trying a job's grader on the first rows of its files with an empty answer, before there is a job.

What cannot go well for any answer refuses the job: a template that names a field the row does not have, a row without
what the grader needs. Everything else becomes an event of the job: what the grader said, and what went wrong that an
empty answer may explain, or a server that may answer later.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bgpo.rewards import Grade, GradeErrorInfo, Part, Sample, compile_grader
from bgpo.rewards.spec import AnyGraderSpec, MultiSpec, RewardModelSpec, SingleGraderSpec
from jobs.context import Context
from jobs.errors import InvalidRequest
from jobs.repositories.events import Level
from jobs.services import judge_tokens
from jobs.services.grader_check import require
from jobs.slots import Busy

ROWS = 3
"""Of each file."""
Note = tuple[Level, str]
"""An event to be: its level and message."""
_REMOTE = frozenset({"endpoint", "score_model", "label_model"})


def try_grader(
    ctx: Context, project_id: str, spec: AnyGraderSpec, files: Mapping[str, Sequence[dict[str, Any]]]
) -> list[Note]:
    """What a job's events shall say about its grader.

    Args:
        files: the first rows of each, by the parameter that names the file.

    Raises:
        InvalidRequest, SpecError: the grader can not run, or not grade a row; `param` is a path in the grader.
        InsufficientQuota: it asks judges, and the project's tokens of the month are used up.
    """
    require(ctx, project_id, spec)
    judge_tokens.require(ctx, project_id, spec)
    limit = ctx.settings.grader_try_s
    notes: list[Note] = []

    def work() -> None:
        for grader, here in _triable(spec):
            if not here:
                notes.append(("info", f"Grader '{grader.name}' is not tried: reward models run on workers only"))
                continue
            with compile_grader(grader, require(ctx, project_id, grader)) as compiled:
                for param, rows in files.items():
                    began = time.perf_counter()
                    grades = compiled.grade_all([Sample("")] * len(rows), rows)
                    judge_tokens.count(ctx, project_id, grades)
                    notes.append(_judged(compiled.name, param, grades, time.perf_counter() - began))

    try:
        ctx.grader_slots.run(work, within_s=limit, wait_s=limit)
    except TimeoutError:
        notes.append(("warn", f"The grader was not tried to the end: that took longer than {limit:g} s"))
    except Busy:
        notes.append(("warn", "The grader was not tried: the service runs as many as it may"))
    return list(notes)


def _triable(spec: AnyGraderSpec) -> Iterator[tuple[Any, bool]]:
    """What to try, and whether it can run here: of a multi grader with a reward model, each other part alone."""
    alone: list[SingleGraderSpec] = list(spec.graders.values()) if isinstance(spec, MultiSpec) else []
    if any(isinstance(part, RewardModelSpec) for part in alone):
        yield from ((part, not isinstance(part, RewardModelSpec)) for part in alone)
    else:
        yield spec, not isinstance(spec, RewardModelSpec)


def _judged(name: str, param: str, grades: Sequence[Grade], seconds: float) -> Note:
    for line, grade in enumerate(grades, start=1):
        for part in grade.parts.values():
            if part.error is not None and _hopeless(part, part.error):
                raise InvalidRequest(
                    f"The grader cannot grade line {line} of the {param}: {_said(part.error)}", None, "invalid_grader"
                )
    about = f"Grader '{name}' on the first {len(grades)} rows of the {param}, with an empty answer"
    failed = [(line, grade.error) for line, grade in enumerate(grades, start=1) if grade.error is not None]
    if failed:
        line, error = failed[0]
        count = "1 error" if len(failed) == 1 else f"{len(failed)} errors"
        return "warn", f"{about}: {count}, the first on line {line}: {error.kind}: {_said(error)}"
    rewards = ", ".join(f"{grade.score:g}" for grade in grades)
    return "info", f"{about}: rewards {rewards} ({1000 * seconds / len(grades):.2g} ms each)"


def _hopeless(part: Part, error: GradeErrorInfo) -> bool:
    """Whether no answer could be graded: the fault is the row's or the template's."""
    if error.kind == "invalid_variable_error":
        return "{{ sample." not in error.message  # an answer that is not empty may have it
    return error.kind == "other_error" and part.type not in _REMOTE


def _said(error: GradeErrorInfo) -> str:
    last = (error.details or "").strip().rpartition("\n")[2]
    return f"{error.message} ({last})" if last and last not in error.message else error.message
