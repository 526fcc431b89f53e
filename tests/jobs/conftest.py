"""Shorthands for tests of `jobs`: a stored job, and moving its clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jobs.artifacts import Manifest, ManifestFile
from jobs.db import Database
from jobs.ids import JOB, new_id
from jobs.repositories import job_rows, jobs
from jobs.states import State
from jobs.tables import DEFAULT_PROJECT, Job


@pytest.fixture
def manifest() -> Manifest:
    """Of a checkpoint whose files no test reads."""
    return Manifest((ManifestFile("model.safetensors", 3, "0" * 64, "weights"),))


@pytest.fixture
def make_job(db: Database) -> Callable[..., str]:
    """Stores a job, queued unless told otherwise, and returns its id."""

    def make(**values: Any) -> str:
        job_id = new_id(JOB)
        fields: dict[str, Any] = {
            "id": job_id,
            "project_id": DEFAULT_PROJECT,
            "request_hash": "0",
            "model": "tiny",
            "training_file": "file-train",
            "seed": 1,
            "method": {"type": "reinforcement"},
            "recipe": {"seed": 1},
            "tuned_model": f"ft:tiny:proj_default::{job_id[-12:]}",
            "total_steps": 20,
            "state": State.QUEUED,
            "desired": "run",
            "attempts_left": 3,
            "max_attempts": 3,
        }
        with db.transaction() as session:
            job_rows.insert(session, Job(**(fields | values)))
        return job_id

    return make


@pytest.fixture
def make_running(db: Database, make_job: Callable[..., str]) -> Callable[..., jobs.Claim]:
    """Stores a job and claims it."""

    def make(**values: Any) -> jobs.Claim:
        job_id = make_job(**values)
        with db.transaction() as session:
            claim = jobs.claim(session, job_id, "worker-1", 60)
        assert claim is not None
        return claim

    return make
