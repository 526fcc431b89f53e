"""Which checkpoints stay: the choice against its definition, and rows, files and locks on both databases."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from jobs.artifacts import Manifest, StorageError
from jobs.context import Context
from jobs.db import Database
from jobs.errors import InvalidRequest, NotFound
from jobs.ids import CHECKPOINT, JOB, new_id
from jobs.repositories import checkpoints, job_rows
from jobs.repositories.checkpoints import Kept
from jobs.repositories.jobs import Claim
from jobs.services import retention
from jobs.settings import Settings
from jobs.states import State
from jobs.tables import DEFAULT_PROJECT, Checkpoint, Event, Job

FLAGS = ("final", "best", "pinned", "damaged")
Publish = Callable[..., str]
MakeRunning = Callable[..., Claim]


def test_the_choice_is_its_definition() -> None:
    """Every set of up to three checkpoints with every combination of flags, for every rule."""
    flags = [dict(zip(FLAGS, values, strict=True)) for values in itertools.product((False, True), repeat=4)]
    for count in range(4):
        for given in itertools.product(flags, repeat=count):
            rows = [Kept(str(step), step, "k", **row) for step, row in enumerate(given)]
            for keep_last, keep_best, used in itertools.product((1, 2), (False, True), ((), ("0",))):
                gone = retention.surplus(rows, keep_last, keep_best=keep_best, in_use=used)
                assert {row.id for row in gone} == surplus_by_hand(rows, keep_last, keep_best, used), (rows, keep_last)


def surplus_by_hand(rows: list[Kept], keep_last: int, keep_best: bool, used: tuple[str, ...]) -> set[str]:
    best = max((row.step for row in rows if row.best and not row.damaged), default=-1)
    good = sorted(row.step for row in rows if not row.damaged)
    window = good[-keep_last] if len(good) >= keep_last else -1  # what is older is too much
    reasons = {
        row.id: [row.step >= window, row.final, row.pinned, row.id in used, keep_best and row.step == best]
        for row in rows
    }
    return {name for name, why in reasons.items() if not any(why)}


@pytest.fixture
def ctx(database_url: str, tmp_path: Path) -> Any:
    settings = Settings(home=tmp_path / "home", database_url=database_url, redis_url=SecretStr("redis://127.0.0.1:1/0"))
    context = Context.open(settings)
    yield context
    context.close()


@pytest.fixture
def running(make_running: MakeRunning) -> MakeRunning:
    """A running job whose recipe keeps the last two."""

    def make(**checkpointing: Any) -> Claim:
        recipe = {"seed": 1, "checkpointing": {"keep_last": 2} | checkpointing}
        return make_running(recipe=recipe, request={"model": "tiny"})

    return make


@pytest.fixture
def publish(ctx: Context, tmp_path: Path) -> Publish:
    """Publishes a checkpoint of a step and returns its id."""

    def put(claim: Claim, step: int, *, final: bool = False, best: bool = False) -> str:
        folder = tmp_path / "step"
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(bytes([step]))
        key = f"checkpoints/{claim.job_id}/{claim.epoch}/step-{step:06d}"
        manifest = ctx.store.publish_directory(folder, key)
        with ctx.db.transaction() as session:
            made = checkpoints.insert(session, claim.job_id, claim.epoch, step, key, manifest, final, {}, best=best)
        assert made is not None
        return made

    return put


def steps(ctx: Context, claim: Claim) -> list[int]:
    """Steps with a row; their files, and only theirs, are in the store."""
    with ctx.db.read() as session:
        found = checkpoints.page(session, claim.job_id, after=None, limit=100)
    stored = {found.key.rpartition("/")[0] for found in ctx.store.walk(f"checkpoints/{claim.job_id}")}
    assert stored == {row.key for row in found}
    return sorted(row.step for row in found)


def apply(ctx: Context, claim: Claim) -> int:
    return retention.apply(ctx.db, ctx.store, claim.job_id, claim.epoch)


def test_the_last_the_best_and_the_pinned_stay(ctx: Context, running: MakeRunning, publish: Publish) -> None:
    claim = running()
    made = {step: publish(claim, step, best=step in (1, 3)) for step in range(1, 8)}
    with ctx.db.transaction() as session:
        pinned = checkpoints.set_pinned(session, DEFAULT_PROJECT, made[2], True)
        assert pinned is not None
        assert pinned.pinned
        assert checkpoints.set_pinned(session, "proj_other", made[2], True) is None
    assert apply(ctx, claim) == 3
    assert steps(ctx, claim) == [2, 3, 6, 7]
    with ctx.db.transaction() as session:
        unpinned = checkpoints.set_pinned(session, DEFAULT_PROJECT, made[2], False)
        assert unpinned is not None
        assert not unpinned.pinned
    publish(claim, 8, final=True)
    assert apply(ctx, claim) == 2
    assert steps(ctx, claim) == [3, 7, 8]
    assert apply(ctx, claim) == 0


def test_without_keep_best_only_the_last_stay(ctx: Context, running: MakeRunning, publish: Publish) -> None:
    claim = running(keep_best=False)
    for step in (1, 2, 3):
        publish(claim, step, best=step == 1)
    apply(ctx, claim)
    assert steps(ctx, claim) == [2, 3]


def test_what_a_job_goes_on_from_stays(
    ctx: Context, running: MakeRunning, publish: Publish, make_job: Callable[..., str], set_job: Callable[..., None]
) -> None:
    claim = running()
    made = [publish(claim, step) for step in range(1, 6)]
    make_job(resume_checkpoint_id=made[0])
    make_job(resume_checkpoint_id=made[1], state=State.FAILED)  # can be retried
    set_job(claim.job_id, resume_checkpoint_id=made[2])
    apply(ctx, claim)
    assert steps(ctx, claim) == [1, 2, 3, 4, 5]


def test_damaged_ones_do_not_count(ctx: Context, running: MakeRunning, publish: Publish) -> None:
    claim = running()
    made = [publish(claim, step, best=step == 3) for step in range(1, 6)]
    with ctx.db.transaction() as session:
        for index in (2, 3):
            checkpoints.mark_damaged(session, made[index])
    apply(ctx, claim)
    assert steps(ctx, claim) == [2, 3, 4, 5]
    publish(claim, 6)
    apply(ctx, claim)
    assert steps(ctx, claim) == [5, 6]


def test_only_the_worker_that_has_the_job_deletes(
    ctx: Context, running: MakeRunning, publish: Publish, set_job: Callable[..., None]
) -> None:
    claim = running()
    for step in range(1, 5):
        publish(claim, step)
    set_job(claim.job_id, epoch=2)
    assert apply(ctx, claim) == 0
    set_job(claim.job_id, epoch=1, state=State.CANCELLED)
    assert apply(ctx, claim) == 0
    assert steps(ctx, claim) == [1, 2, 3, 4]


def test_jobs_of_the_first_schema_keep_all(ctx: Context, make_running: MakeRunning, publish: Publish) -> None:
    claim = make_running(recipe={"seed": 1, "checkpointing": {"keep_last": 1}})
    for step in range(1, 5):
        publish(claim, step)
    assert apply(ctx, claim) == 0
    assert steps(ctx, claim) == [1, 2, 3, 4]


def test_files_that_cannot_be_deleted_are_left_to_the_sweeper(
    ctx: Context, running: MakeRunning, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = running()
    for step in range(1, 5):
        publish(claim, step)

    def refuse(key: str) -> None:
        raise StorageError("out of order")

    monkeypatch.setattr(ctx.store._storage, "remove", refuse)
    assert apply(ctx, claim) == 2
    with ctx.db.read() as session:
        assert [row.step for row in checkpoints.page(session, claim.job_id, after=None, limit=9)] == [4, 3]
    assert len(list(ctx.store.walk("checkpoints"))) == 4


def test_retention_waits_for_a_job_that_is_being_retried(ctx: Context, running: MakeRunning, publish: Publish) -> None:
    """Whatever checkpoint the new job has chosen is there when it begins."""
    claim = running(keep_last=1, keep_best=False)
    made = [publish(claim, step) for step in (1, 2)]
    with ctx.db.transaction() as session:  # found whole again later, which makes step 1 surplus
        checkpoints.mark_damaged(session, made[1])
    chosen, go_on = threading.Event(), threading.Event()

    def retry() -> None:
        with ctx.db.transaction() as session:
            source = session.get_one(Job, claim.job_id)
            resume = job_rows.resume_point(session, source)
            assert resume is not None
            assert resume.id == made[0]
            chosen.set()
            assert go_on.wait(30)
            again = job_rows.again(source, id=new_id(JOB), tuned_model="ft:x", max_attempts=3, resume=resume)
            session.execute(sa.update(Checkpoint).where(Checkpoint.id == made[1]).values(damaged=False))
            job_rows.insert(session, again)

    retrying = threading.Thread(target=retry)
    retrying.start()
    assert chosen.wait(30)
    deleting = threading.Thread(target=apply, args=(ctx, claim))
    deleting.start()
    deleting.join(0.5)
    assert deleting.is_alive(), "it must wait for the lock"
    go_on.set()
    retrying.join(30)
    deleting.join(30)
    assert steps(ctx, claim) == [1, 2]


def test_users_delete_what_nothing_needs(
    ctx: Context, running: MakeRunning, publish: Publish, make_job: Callable[..., str], set_job: Callable[..., None]
) -> None:
    claim = running()
    first, second, third = (publish(claim, step) for step in (1, 2, 3))
    last = publish(claim, 4, final=True)

    def refused(checkpoint_id: str, code: str) -> None:
        with pytest.raises(InvalidRequest) as raised:
            retention.delete_checkpoint(ctx, DEFAULT_PROJECT, checkpoint_id)
        assert raised.value.code == code

    for project, name in ((DEFAULT_PROJECT, new_id(CHECKPOINT)), (DEFAULT_PROJECT, "x"), ("proj_other", first)):
        with pytest.raises(NotFound):
            retention.delete_checkpoint(ctx, project, name)
    retention.delete_checkpoint(ctx, DEFAULT_PROJECT, first)
    assert steps(ctx, claim) == [2, 3, 4]
    with ctx.db.transaction() as session:
        checkpoints.set_pinned(session, DEFAULT_PROJECT, second, True)
    refused(second, "checkpoint_pinned")
    refused(last, "checkpoint_in_use")
    other = make_job(resume_checkpoint_id=third, state=State.PAUSED)
    refused(third, "checkpoint_in_use")
    set_job(other, state=State.CANCELLED)
    retention.delete_checkpoint(ctx, DEFAULT_PROJECT, third)
    assert steps(ctx, claim) == [2, 4]
    with ctx.db.read() as session:
        assert session.get_one(Job, other).resume_checkpoint_id is None
    with pytest.raises(NotFound):
        retention.delete_checkpoint(ctx, DEFAULT_PROJECT, third)


def test_where_a_job_goes_on(
    ctx: Context, running: MakeRunning, publish: Publish, make_job: Callable[..., str], db: Database
) -> None:
    claim = running()

    def goes_on(job_id: str) -> str | None:
        with db.read() as session:
            found = checkpoints.to_resume(session, job_id)
        return found.id if found else None

    def damage(checkpoint_id: str) -> None:
        with db.transaction() as session:
            checkpoints.mark_damaged(session, checkpoint_id)

    assert goes_on(claim.job_id) is None
    first, second, third = (publish(claim, step) for step in (1, 2, 3))
    retried = make_job(resume_checkpoint_id=second)
    assert (goes_on(claim.job_id), goes_on(retried)) == (third, second)
    damage(third)
    assert (goes_on(claim.job_id), goes_on(retried)) == (second, second)
    damage(second)
    assert (goes_on(claim.job_id), goes_on(retried)) == (first, first)
    foreign = make_job(project_id="proj_other", resume_checkpoint_id=second)
    assert goes_on(foreign) is None, "its project was given the one checkpoint, and no other"
    damage(first)
    assert (goes_on(claim.job_id), goes_on(retried)) == (None, None)
    publish(claim, 2)  # the same step once more: whole again
    assert goes_on(claim.job_id) == second


def test_a_publish_that_was_recorded_is_not_recorded_twice(
    running: MakeRunning, db: Database, manifest: Manifest
) -> None:
    """The connection broke after the commit and before its answer: the uploader tries again."""
    claim = running()
    made = []
    for _ in range(2):
        with db.transaction() as session:
            made.append(checkpoints.insert(session, claim.job_id, claim.epoch, 1, "checkpoints/k", manifest, False, {}))
    assert made[0] is not None
    assert made[0] == made[1]
    with db.read() as session:
        messages = list(session.scalars(sa.select(Event.message).where(Event.job_id == claim.job_id)))
    assert sum("Checkpoint created" in message for message in messages) == 1


def test_what_an_unfinished_job_starts_from_stays(
    ctx: Context, running: MakeRunning, publish: Publish, make_job: Callable[..., str]
) -> None:
    claim = running()
    made = {step: publish(claim, step) for step in range(1, 6)}
    waiting = make_job(start_checkpoint_id=made[1])
    make_job(start_checkpoint_id=made[2], state=State.FAILED)
    assert apply(ctx, claim) == 2
    assert steps(ctx, claim) == [1, 4, 5]
    with pytest.raises(InvalidRequest, match="starts from checkpoint"):
        retention.delete_checkpoint(ctx, DEFAULT_PROJECT, made[1])
    with ctx.db.transaction() as session:
        assert job_rows.cancel(session, DEFAULT_PROJECT, waiting) is not None
    retention.delete_checkpoint(ctx, DEFAULT_PROJECT, made[1])
    assert steps(ctx, claim) == [4, 5]
