"""Whether a worker may take a job, and the locks of its GPUs."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.db import Database
from tests.worker.helpers import GetJob, MakeJob, attempts_of
from worker.answering import run_next
from worker.context import WorkerContext
from worker.fitness import fit
from worker.gpus import GpuBusy, GpuLocks

GPUS = ("GPU-aaaa", "GPU-bbbb")
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def with_gpus(context: WorkerContext, tmp_path: Path) -> WorkerContext:
    """A worker that believes it has two GPUs."""
    settings = context.settings.model_copy(update={"lock_dir": tmp_path / "locks"})
    return replace(context, settings=settings, slot=replace(context.slot, gpu_type="h200", devices=GPUS))


@contextmanager
def held(worker: WorkerContext) -> Iterator[None]:
    with GpuLocks(worker.settings.lock_dir, GPUS[1:]).hold():
        yield


def test_a_worker_whose_gpu_is_in_use_leaves_the_job_to_others(
    with_gpus: WorkerContext, make_job: MakeJob, get_job: GetJob
) -> None:
    job_id = make_job()
    with held(with_gpus):
        assert run_next(with_gpus) is False
    assert (get_job(job_id).state, get_job(job_id).epoch) == ("queued", 0)
    assert "GPU-bbbb is in use by process" in str(with_gpus.activity.problem)
    assert run_next(with_gpus) is True
    assert get_job(job_id).state == "succeeded"
    assert with_gpus.activity.problem is None


def test_the_locks_are_held_for_the_block_and_free_after_it(with_gpus: WorkerContext) -> None:
    def free() -> bool:
        try:
            with held(with_gpus):
                return True
        except GpuBusy:
            return False

    with fit(with_gpus) as locks:
        assert locks is not None
        assert len(locks) == 2
        assert not free()
    assert free()


def test_the_trainer_sees_its_gpus_and_holds_their_locks(
    with_gpus: WorkerContext, db: Database, make_job: MakeJob, get_job: GetJob, tmp_path: Path
) -> None:
    """Asked of a trainer that says what it finds, and fails."""
    script = tmp_path / "curious.py"
    script.write_text(
        "import json, os, sys\n"
        "found = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if int(fd) > 2"
        " and os.path.exists(f'/proc/self/fd/{fd}')]\n"
        "locks = sorted(os.path.basename(path) for path in found if '/locks/' in path)\n"
        "print(json.dumps([os.environ['CUDA_VISIBLE_DEVICES'], locks]))\n"
        "sys.exit(3)\n"
    )
    job_id = make_job()
    run_next(replace(with_gpus, trainer=(with_gpus.trainer[0], str(script))))
    assert json.loads(str(get_job(job_id).error_log)) == ["GPU-aaaa", ["gpu-aaaa", "gpu-bbbb"]]
    assert attempts_of(db, job_id)[0].devices == ["GPU-aaaa"]


def test_a_lock_folder_that_cannot_be_written_is_a_problem(with_gpus: WorkerContext, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    worker = replace(with_gpus, settings=with_gpus.settings.model_copy(update={"lock_dir": tmp_path / "file" / "x"}))
    with fit(worker) as locks:
        assert locks is None
    assert worker.activity.problem == "the locks of its GPUs cannot be taken: Not a directory"


def test_a_cpu_worker_locks_nothing(context: WorkerContext) -> None:
    with fit(context) as locks:
        assert locks == ()


def test_a_held_lock_is_really_one(with_gpus: WorkerContext) -> None:
    """By the kernel's word, not by ours."""
    lock = Path(str(with_gpus.settings.lock_dir), "gpu-aaaa")
    with fit(with_gpus), lock.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
