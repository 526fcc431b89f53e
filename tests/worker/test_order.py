"""A checkpoint follows the records of its steps: whoever resumes from it reports none of them again."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from bgpo.records import CheckpointRecord, MetricRecord
from jobs.db import Database
from jobs.repositories import checkpoints, jobs, metrics
from tests.worker.helpers import MakeJob, wait_for
from worker.context import WorkerContext
from worker.recorder import Recorder
from worker.uploader import Uploader


def step_1(folder: Path) -> tuple[MetricRecord, CheckpointRecord]:
    """What a trainer reports of a step with a checkpoint in `folder`."""
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"files": []}))
    common = {"seq": 1, "time": time.time(), "step": 1}
    metric = MetricRecord(type="metric", total_steps=2, split="train", values={"loss": 1.0}, **common)
    return metric, CheckpointRecord(type="checkpoint", path=str(folder), final=False, metrics={}, **common)


@pytest.mark.parametrize("written", [True, False])
def test_a_checkpoint_follows_the_records_before_it(
    db: Database, context: WorkerContext, make_job: MakeJob, tmp_path: Path, written: bool
) -> None:
    job_id = make_job()
    with db.transaction() as session:
        assert jobs.claim(session, job_id, "worker", 60) is not None
    recorder = Recorder(db, job_id, 1)
    uploader = Uploader(db, context.store, job_id, 1)
    metric, checkpoint = step_1(tmp_path / "step-1")
    recorder.put(metric)
    uploader.put(checkpoint, tmp_path / "step-1", recorder.mark())
    uploader.close()
    uploader.start()
    wait_for(lambda: any((tmp_path / "home" / "artifacts").rglob("manifest.json")), "the files are stored")
    if written:
        recorder.close()
        recorder.start()
    else:
        uploader.abandon()
    uploader.join(30)
    assert not uploader.is_alive()
    with db.read() as session:
        rows = checkpoints.page(session, job_id, after=None, limit=10)
        assert [row.step for row in rows] == ([1] if written else [])
        assert len(metrics.series(session, job_id)) == int(written)
