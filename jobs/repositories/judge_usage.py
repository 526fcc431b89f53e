"""Writing down the tokens that judges take, and their sums.

A step that two attempts made counts twice, for the judges were asked twice. Tokens of a step that was never reported,
because its trainer was killed in the middle of it, are not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.ids import JUDGED, new_id
from jobs.repositories.dialect import insert
from jobs.tables import Job, JudgeUsage

_METRIC = re.compile(r"(?:sampled_|greedy_)?judge_tokens/.+/(prompt|completion)")
TOKENS = JudgeUsage.prompt_tokens + JudgeUsage.completion_tokens


def tokens_of(values: Mapping[str, float]) -> tuple[int, int]:
    """Prompt and completion tokens of all judges, by a step's metrics (docs/trainer.md)."""
    found = {"prompt": 0.0, "completion": 0.0}
    for name, value in values.items():
        if (match := _METRIC.fullmatch(name)) is not None:
            found[match[1]] += value
    return int(found["prompt"]), int(found["completion"])


def add_step(session: Session, job_id: str, epoch: int, step: int, split: str, values: Mapping[str, float]) -> None:
    """Write down what a step of an attempt took, by its metrics; to no further effect when that is done."""
    prompt, completion = tokens_of(values)
    if not prompt + completion:
        return
    row = {
        "id": f"{job_id}.{epoch}.{step}.{split}",
        "project_id": session.scalars(sa.select(Job.project_id).where(Job.id == job_id)).one(),
        "job_id": job_id,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
    }
    statement = insert(session, JudgeUsage).values(**row, created_at=now())
    session.execute(statement.on_conflict_do_nothing(index_elements=["id"]))


def add_run(session: Session, project_id: str, prompt: int, completion: int) -> None:
    """Write down what a run of a grader outside of jobs took."""
    row = {"id": new_id(JUDGED), "project_id": project_id, "prompt_tokens": prompt, "completion_tokens": completion}
    session.execute(sa.insert(JudgeUsage).values(**row, created_at=now()))


def of_job(session: Session, job_id: str) -> int:
    """Tokens that judges took for a job so far."""
    total = sa.func.coalesce(sa.func.sum(TOKENS), 0)
    return int(session.scalars(sa.select(total).where(JudgeUsage.job_id == job_id)).one())
