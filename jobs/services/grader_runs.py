"""Running graders outside of jobs: on one sample, or on many with statistics.

In this process, in a bounded number of threads and for a bounded time. A grader that fails is a result, not an error of
the request: what it would do to a job is just what its author wants to see.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bgpo.rewards import Grade, GradeErrorInfo, Sample
from bgpo.rewards.spec import AnyGraderSpec, GraderRefSpec
from jobs.context import Context
from jobs.errors import InvalidRequest
from jobs.repositories import files
from jobs.services import judge_tokens
from jobs.services.grader_check import compiled, located
from jobs.services.rows import first_rows
from jobs.services.stored_graders import Resolved, resolve
from jobs.wire.graders import RunGrader, RunGraderBatch

UNSUPPORTED = "unsupported_grader"
_CHUNK = 16
"""Samples handed to a grader at once; between two the clock is looked at."""


@dataclass(frozen=True)
class Run:
    """A grader and what it said of some samples."""

    spec: AnyGraderSpec
    grades: Sequence[Grade]
    """One for each sample, in order."""
    seconds: float
    """Of the whole run, without making the grader."""

    @property
    def name(self) -> str:
        """The grader's."""
        return "" if isinstance(self.spec, GraderRefSpec) else self.spec.name


def validate(ctx: Context, project_id: str, spec: AnyGraderSpec) -> Resolved:
    """Check a grader as far as that goes without a sample: also that this machine could run it.

    Raises:
        InvalidRequest: with the path of what is wrong.
        Busy: as many graders run here as may.
    """
    with located("grader", UNSUPPORTED):
        resolved = resolve(ctx, project_id, spec)

        def check() -> None:
            compiled(ctx, project_id, resolved.spec).close()

        try:
            ctx.grader_slots.run(check, within_s=ctx.settings.grader_run_s)
        except TimeoutError as error:
            raise InvalidRequest(f"the check took longer than {ctx.settings.grader_run_s:g} s") from error
    return resolved


def run(ctx: Context, project_id: str, body: RunGrader) -> Run:
    """Grade one sample. Raises InvalidRequest for a grader that cannot run here, InsufficientQuota, Busy."""
    return _run(ctx, project_id, body.grader, [(body.model_sample, body.item)])


def run_batch(ctx: Context, project_id: str, body: RunGraderBatch) -> Run:
    """Grade the samples of the request, or the rows of a file. Raises as `run`, and for a file that does not fit."""
    if body.samples is not None:
        pairs: list[tuple[str, Mapping[str, Any]]] = [(given.model_sample, given.item) for given in body.samples]
    else:
        pairs = _pairs_of_file(ctx, project_id, body)
    return _run(ctx, project_id, body.grader, pairs)


def _run(ctx: Context, project_id: str, spec: AnyGraderSpec, pairs: Sequence[tuple[str, Mapping[str, Any]]]) -> Run:
    limit = ctx.settings.grader_run_s
    deadline = time.monotonic() + limit
    grades: list[Grade] = []
    samples, items = [Sample(text) for text, _ in pairs], [item for _, item in pairs]
    with located("grader", UNSUPPORTED):
        resolved = resolve(ctx, project_id, spec)

        judge_tokens.require(ctx, project_id, resolved.spec)

        def work() -> float:
            with compiled(ctx, project_id, resolved.spec) as grader:
                began = time.perf_counter()
                for start in range(0, len(samples), _CHUNK):
                    if time.monotonic() > deadline:
                        break
                    some = grader.grade_all(samples[start : start + _CHUNK], items[start : start + _CHUNK])
                    judge_tokens.count(ctx, project_id, some)  # here, because nobody may wait for the rest any more
                    grades.extend(some)
                return time.perf_counter() - began

        try:
            seconds = ctx.grader_slots.run(work, within_s=limit)
        except TimeoutError:
            seconds = limit
    done = grades[: len(samples)]
    late = GradeErrorInfo("other_error", f"not graded within {limit:g} s, the limit of this service")
    missing = [Grade(0.0, solved=False, error=late)] * (len(samples) - len(done))
    return Run(resolved.spec, [*done, *missing], seconds)


def _pairs_of_file(ctx: Context, project_id: str, body: RunGraderBatch) -> list[tuple[str, Mapping[str, Any]]]:
    assert body.file is not None
    with ctx.db.read() as session:
        file = files.get(session, project_id, body.file)
    if file is None:
        raise InvalidRequest(f"No such File object: {body.file}", "file")
    with located("file", "invalid_file_format"):
        rows = first_rows(ctx, file, body.limit)
    if not rows:
        raise InvalidRequest(f"File {body.file} has no rows.", "file", "invalid_file_format")
    name = body.completion_field
    for line, row in enumerate(rows, start=1):
        if not isinstance(row.get(name), str):
            message = f"Line {line} of {body.file} has no text at {name!r}, the answer to grade."
            raise InvalidRequest(message, "completion_field", "invalid_file_format")
    return [(row[name], row) for row in rows]
