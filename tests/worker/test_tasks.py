"""Evaluations and exports under the machinery of jobs: what the trainer is told, retries, stops, deletions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.db import Database
from jobs.ids import new_id
from jobs.kinds import PREFIXES, Kind
from jobs.repositories import checkpoints, job_rows, jobs, samples
from jobs.tables import DEFAULT_PROJECT, Checkpoint
from tests.worker.conftest import RECIPE
from tests.worker.helpers import GetJob, InBackground, MakeJob, SetJob, WithTrainer, attempts_of, wait_for
from worker.answering import run_next
from worker.context import WorkerContext

ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
WHOLE = ("config.json", "model.safetensors", "trainer_state/state.json")
MakeTask = Callable[..., str]


@pytest.fixture
def make_checkpoint(db: Database, context: WorkerContext, make_job: MakeJob, tmp_path: Path) -> Callable[..., str]:
    """Stores a checkpoint of a job that has failed since, with these files; its id."""

    def make(*paths: str, **values: Any) -> str:
        job_id = make_job(**values)
        with db.transaction() as session:
            claim = jobs.claim(session, job_id, "w", 60)
        assert claim is not None
        folder = tmp_path / new_id("made-")
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(path)
        key = f"checkpoints/{job_id}/1/step-000002"
        manifest = context.store.publish_directory(folder, key)
        with db.transaction() as session:
            found = checkpoints.insert(session, job_id, 1, 2, key, manifest, False, {})
            assert jobs.finish(session, job_id, 1, "failed", error=jobs.JobError("nan", "it broke"))
        assert found is not None
        return found

    return make


@pytest.fixture
def make_task(db: Database, make_job: MakeJob) -> MakeTask:
    """Stores a queued task; an evaluation has the file of `make_job` as its own."""

    def make(kind: Kind, **values: Any) -> str:
        task_id = new_id(PREFIXES[kind])
        recipe = {"content": "merged", "dtype": "float16"} if kind == Kind.EXPORT else RECIPE
        make_job(id=task_id, kind=kind, tuned_model=task_id, **({"recipe": recipe} | values))
        with db.transaction() as session:
            job = job_rows.get(session, DEFAULT_PROJECT, task_id, kind)
            assert job is not None
            file, job.training_file = job.training_file, ""
            job.validation_file = file if kind == Kind.EVALUATE else None
        return task_id

    return make


def result_of(db: Database, context: WorkerContext, get_job: GetJob, task_id: str) -> tuple[Checkpoint, dict[str, Any]]:
    """The row of a task's result, and what its trainer says it was told."""
    final = get_job(task_id).final_checkpoint_id
    assert final is not None
    with db.read() as session:
        row = session.get_one(Checkpoint, final)
    size = next(file["bytes"] for file in row.manifest if file["path"] == "results.jsonl")
    return row, json.loads(b"".join(context.store.read(f"{row.key}/results.jsonl", 0, size)))


def test_an_evaluation_of_the_base_model(
    context: WorkerContext, db: Database, make_task: MakeTask, get_job: GetJob
) -> None:
    task_id = make_task(Kind.EVALUATE)
    assert run_next(context)
    job = get_job(task_id)
    assert (job.state, job.result_files, job.error_code) == ("succeeded", None, None)
    row, told = result_of(db, context, get_job, task_id)
    assert (row.final, row.metrics) == (True, {"sampled_reward_mean": 0.5})
    spec = told["spec"]
    assert spec["model"] == str(context.settings.model_root / "tiny")
    assert (spec["base"], spec["recipe"]["seed"]) == (None, 1)
    assert Path(spec["data"]).name == "file.jsonl"
    with db.read() as session:
        (sample,) = samples.in_order(session, task_id, after=None, limit=9, each=2)
        assert (sample.index, sample.reward) == (0, 1.0)
    (attempt,) = attempts_of(db, task_id)
    assert attempt.outcome == "succeeded", "what it took counts as a job's"
    assert not (context.settings.home / "work" / task_id).exists()


@pytest.mark.parametrize(
    ("kind", "recipe", "of", "files", "over_base"),
    [
        (Kind.EVALUATE, RECIPE, (*WHOLE, *ADAPTER), ADAPTER, True),
        (Kind.EVALUATE, RECIPE, (*ADAPTER, WHOLE[2]), ADAPTER, True),
        (Kind.EVALUATE, RECIPE, WHOLE, WHOLE[:2], False),
        (Kind.EXPORT, {"content": "merged", "dtype": "float16"}, (*WHOLE, *ADAPTER), ADAPTER, True),
        (Kind.EXPORT, {"content": "merged", "dtype": "float16"}, WHOLE, WHOLE[:2], False),
        (Kind.EXPORT, {"content": "adapter", "dtype": "float32"}, (*WHOLE, *ADAPTER), ADAPTER, True),
    ],
)
def test_a_task_gets_the_files_it_needs_of_its_checkpoint(
    context: WorkerContext,
    db: Database,
    make_task: MakeTask,
    make_checkpoint: Callable[..., str],
    get_job: GetJob,
    kind: Kind,
    recipe: dict[str, Any],
    of: tuple[str, ...],
    files: tuple[str, ...],
    over_base: bool,
) -> None:
    """An adapter goes over the base model, whole weights stand alone, the trainer's state is for neither."""
    task_id = make_task(kind, recipe=recipe, base_model="tiny", start_checkpoint_id=make_checkpoint(*of))
    assert run_next(context)
    _, told = result_of(db, context, get_job, task_id)
    assert told["files"] == sorted(files)
    assert told["spec"]["base"] == (str(context.settings.model_root / "tiny") if over_base else None)
    if kind == Kind.EXPORT:
        assert {name: told["spec"][name] for name in ("content", "dtype", "base_name")} == recipe | {
            "base_name": "tiny"
        }


def test_an_adapter_over_tuned_weights_is_taken_merged(
    context: WorkerContext,
    db: Database,
    make_task: MakeTask,
    make_checkpoint: Callable[..., str],
    get_job: GetJob,
) -> None:
    """The catalog's base model is not what that adapter was trained over."""
    first = make_checkpoint(*WHOLE)
    second = make_checkpoint(*WHOLE, *ADAPTER, base_model="tiny", start_checkpoint_id=first)
    task_id = make_task(Kind.EVALUATE, base_model="tiny", start_checkpoint_id=second)
    assert run_next(context)
    _, told = result_of(db, context, get_job, task_id)
    assert (told["files"], told["spec"]["base"]) == (sorted(WHOLE[:2]), None)


def test_a_lost_attempt_begins_again(
    with_trainer: WithTrainer, db: Database, make_task: MakeTask, get_job: GetJob, set_job: SetJob
) -> None:
    task_id = make_task(Kind.EVALUATE)
    assert run_next(with_trainer("killed-once"))
    assert get_job(task_id).state == "queued"
    set_job(task_id, not_before=0)
    assert run_next(with_trainer("killed-once"))
    assert get_job(task_id).state == "succeeded"
    assert [attempt.outcome for attempt in attempts_of(db, task_id)] == ["queued", "succeeded"]


def test_it_fails_when_no_attempt_is_left(with_trainer: WithTrainer, make_task: MakeTask, get_job: GetJob) -> None:
    task_id = make_task(Kind.EXPORT, attempts_left=1)
    assert run_next(with_trainer("killed-always"))
    job = get_job(task_id)
    assert (job.state, job.error_code, job.final_checkpoint_id) == ("failed", "trainer_crashed", None)


def test_a_bad_row_is_the_files_fault(with_trainer: WithTrainer, make_task: MakeTask, get_job: GetJob) -> None:
    task_id = make_task(Kind.EVALUATE)
    assert run_next(with_trainer("4"))
    job = get_job(task_id)
    assert (job.state, job.error_code, job.error_param) == ("failed", "dataset_error", "file")


def test_a_running_task_is_cancelled(
    with_trainer: WithTrainer, db: Database, make_task: MakeTask, get_job: GetJob
) -> None:
    task_id = make_task(Kind.EVALUATE)
    running = InBackground(with_trainer("waiting"))
    wait_for(lambda: get_job(task_id).phase == "evaluating", "the trainer runs")
    with db.transaction() as session:
        cancelled = job_rows.cancel(session, DEFAULT_PROJECT, task_id, Kind.EVALUATE)
    assert cancelled is not None
    running.wait()
    assert get_job(task_id).state == "cancelled"


def test_a_deleted_file_or_a_damaged_checkpoint_ends_it(
    context: WorkerContext,
    db: Database,
    make_task: MakeTask,
    make_checkpoint: Callable[..., str],
    get_job: GetJob,
    set_job: SetJob,
) -> None:
    without = make_task(Kind.EVALUATE)
    set_job(without, validation_file=new_id("file-"))
    assert run_next(context)
    assert (get_job(without).state, get_job(without).error_param) == ("failed", "file")
    checkpoint_id = make_checkpoint(*WHOLE)
    with db.read() as session:
        key = session.get_one(Checkpoint, checkpoint_id).key
    context.store.delete(f"{key}/model.safetensors")
    damaged = make_task(Kind.EXPORT, base_model="tiny", start_checkpoint_id=checkpoint_id)
    assert run_next(context)
    assert (get_job(damaged).state, get_job(damaged).error_code) == ("failed", "bad_model")
    with db.read() as session:
        assert session.get_one(Checkpoint, checkpoint_id).damaged
