"""Checking a create request without creating anything: all that `create` would refuse, not only the first of it.

Every part is checked as far as the others allow. A body that is no create request at all has its files and its model
checked still; what depends on the method is left out then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from sqlalchemy.orm import Session

from bgpo.errors import BgpoError
from jobs.context import Context
from jobs.errors import InvalidRequest, ServiceError
from jobs.services import resuming, scheduling, tuned_models
from jobs.services.create import dataset, start_of, tried_grader
from jobs.services.quotas import require_job
from jobs.services.trial import Note
from jobs.wire.base import explain
from jobs.wire.recipe import Method, build, faults, method_of
from jobs.wire.request import CreateJob

_SOME_ROWS = 1000
"""Stands for the rows of a file that cannot be used, so that the rest can be checked."""
_FILES = ("training_file", "validation_file")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Problem:
    """Something `create` would refuse, as its error would say it."""

    message: str
    param: str | None
    code: str


@dataclass(frozen=True)
class Report:
    """What a create request would come to."""

    problems: Sequence[Problem]
    notes: Sequence[Note]
    """What trying the grader showed."""
    method: dict[str, Any] | None
    """With resolved hyperparameters; None when there are problems."""
    total_steps: int | None


def check(ctx: Context, project_id: str, given: Mapping[str, Any]) -> Report:
    """The report on a create body."""
    found = _Problems()
    try:
        body = CreateJob.model_validate(given)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        for each in errors:
            found.add(Problem(*explain(each, given)))
        if all(each["loc"] for each in errors):  # the whole body is wrong for text that no database can be asked for
            _check_loosely(ctx, project_id, given, found)
        return Report(found.all, (), None, None)
    return _check(ctx, project_id, body, found)


def _check(ctx: Context, project_id: str, body: CreateJob, found: _Problems) -> Report:
    method = found.of(lambda: method_of(body))
    found.of(lambda: scheduling.check_gpus(ctx, body.rl.resources.gpus))
    found.of(lambda: scheduling.check_webhook(ctx, body.rl.webhook_url))
    with ctx.db.read() as session:
        origin = found.of(lambda: resuming.origin_of(ctx, session, project_id, body))
        if method is None and body.rl.resume_from is None:
            found.of(lambda: tuned_models.resolve(ctx, session, project_id, body.model))
        elif method is not None:
            found.of(lambda: start_of(ctx, session, project_id, body, method))
        found.of(lambda: require_job(ctx, session, project_id))
        rows = [_rows(session, project_id, getattr(body, param), param, method, found) for param in _FILES]
    if method is None:
        return Report(found.all, (), None, None)
    tried = found.of(lambda: tried_grader(ctx, project_id, body, method))
    if tried is None:
        return Report(found.all, (), None, None)
    grader, notes = tried
    spec = grader.spec if grader is not None else None
    train, valid = rows[0] or _SOME_ROWS, rows[1]
    for fault in faults(body, train, valid, spec):
        found.add(_problem(fault))
    if found.all:
        return Report(found.all, notes, None, None)
    recipe, shown = build(body, body.seed or 0, train, valid, spec)
    if origin is not None:
        found.of(lambda: resuming.require_fit(origin, recipe))
        if found.all:
            return Report(found.all, notes, None, None)
    if grader is not None:
        shown[method.type]["grader"] = grader.shown
    return Report((), notes, shown, recipe.method.max_steps)


def _check_loosely(ctx: Context, project_id: str, given: Mapping[str, Any], found: _Problems) -> None:
    model = given.get("model")
    with ctx.db.read() as session:
        if isinstance(model, str) and model and not found.concern("model"):
            found.of(lambda: tuned_models.resolve(ctx, session, project_id, model))
        for param in _FILES:
            file_id = given.get(param)
            if isinstance(file_id, str) and not found.concern(param):
                _rows(session, project_id, file_id, param, None, found)


def _rows(
    session: Session, project_id: str, file_id: str | None, param: str, method: Method | None, found: _Problems
) -> int | None:
    """How many a file has, some number for one that cannot be used; None without a file."""
    if file_id is None:
        return None
    summary = found.of(lambda: dataset(session, project_id, file_id, param, method))
    return _SOME_ROWS if summary is None else int(summary["rows"])


class _Problems:
    """What was found so far."""

    def __init__(self) -> None:
        self.all: list[Problem] = []

    def add(self, problem: Problem) -> None:
        """Add one that is not there yet."""
        if problem not in self.all:
            self.all.append(problem)

    def of(self, part: Callable[[], _T]) -> _T | None:
        """What a check returns; None when it refuses, which is added."""
        try:
            return part()
        except (ServiceError, InvalidRequest) as error:
            self.add(_problem(error))
            return None

    def concern(self, param: str) -> bool:
        """Whether one is about this parameter."""
        return any(problem.param == param for problem in self.all)


def _problem(error: BgpoError) -> Problem:
    return Problem(error.message, error.param, error.code)
