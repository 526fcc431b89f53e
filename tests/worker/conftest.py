"""A worker's surroundings: both databases, a store, a real Redis, a job whose files exist, and stand-in trainers."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from jobs.db import Database
from jobs.ids import FILE, JOB, new_id
from jobs.repositories import files, job_rows
from jobs.settings import Settings
from jobs.states import State
from jobs.tables import DEFAULT_PROJECT, Job
from worker.context import WorkerContext

STAND_IN = Path(__file__).with_name("stand_in.py")
RECIPE: dict[str, Any] = {
    "seed": 1,
    "method": {
        "type": "reinforcement",
        "max_steps": 6,
        "grader": {
            "type": "string_check",
            "name": "g",
            "input": "{{ sample.output_text }}",
            "reference": "a",
            "operation": "eq",
        },
    },
}


@pytest.fixture
def settings(tmp_path: Path, database_url: str, redis_url: str) -> Settings:
    model = tmp_path / "models" / "tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    return Settings(
        home=tmp_path / "home",
        database_url=database_url,
        redis_url=SecretStr(redis_url),
        model_root=tmp_path / "models",
        stop_grace_s=0.5,
        beat_s=0.3,
        self_fence_s=6,
        lease_s=8,
        reap_after_s=0,
        reconcile_s=0.2,
        min_free_bytes=0,
    )


@pytest.fixture
def context(settings: Settings) -> Iterator[WorkerContext]:
    """A worker with the well-behaved stand-in."""
    context = WorkerContext.create(settings)
    yield replace(context, trainer=(sys.executable, str(STAND_IN), "normal"))
    context.close()


@pytest.fixture
def with_trainer(context: WorkerContext) -> Callable[..., WorkerContext]:
    """The same worker with the stand-in in another mode, and other settings."""

    def build(mode: str = "normal", **settings: Any) -> WorkerContext:
        changed = context.settings.model_copy(update=settings)
        return replace(context, trainer=(sys.executable, str(STAND_IN), mode), settings=changed)

    return build


@pytest.fixture
def recipe_of() -> Callable[[int], dict[str, Any]]:
    """The job's recipe with another number of steps; 100,000 never end."""
    return lambda steps: RECIPE | {"method": RECIPE["method"] | {"max_steps": steps}}


@pytest.fixture
def make_job(db: Database, context: WorkerContext, tmp_path: Path) -> Callable[..., str]:
    """Stores a queued job with its training file and returns its id."""

    def make(**values: Any) -> str:
        content = b'{"messages": [{"role": "user", "content": "hi"}]}\n'
        source = tmp_path / "train.jsonl"
        source.write_bytes(content)
        file_id, job_id = new_id(FILE), new_id(JOB)
        context.store.put_file(source, f"files/{file_id}")
        fields: dict[str, Any] = {
            "id": job_id,
            "project_id": DEFAULT_PROJECT,
            "request_hash": "0",
            "model": "tiny",
            "training_file": file_id,
            "seed": 1,
            "method": {"type": "reinforcement"},
            "recipe": RECIPE,
            "tuned_model": f"ft:tiny:proj_default::{job_id[-12:]}",
            "total_steps": 6,
            "state": State.QUEUED,
            "desired": "run",
            "attempts_left": 3,
            "max_attempts": 3,
        }
        with db.transaction() as session:
            files.insert(
                session,
                DEFAULT_PROJECT,
                id=file_id,
                filename="train.jsonl",
                purpose="fine-tune",
                bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                key=f"files/{file_id}",
                summary=None,
            )
            job_rows.insert(session, Job(**(fields | values)))
        return job_id

    return make
