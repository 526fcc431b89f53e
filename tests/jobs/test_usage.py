"""What a project has used, against sums by hand; budgets; the running limit of a project. On both databases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.db import Database, now
from jobs.limits import ProjectLimits
from jobs.repositories import events, jobs, judge_usage, metrics, projects, usage
from jobs.repositories.usage import Span, days_of, month_of
from jobs.resources import Slot
from jobs.services.quotas import hold_budgets
from jobs.settings import Settings
from jobs.tables import DEFAULT_ORGANIZATION, DEFAULT_PROJECT, Attempt, Job, JudgeUsage

MakeRunning = Callable[..., jobs.Claim]


@pytest.fixture
def attempt(db: Database) -> Callable[..., None]:
    """Adds an attempt with these times."""

    def add(job_id: str, epoch: int, started_at: float, ended_at: float | None) -> None:
        values = {"job_id": job_id, "epoch": epoch, "worker_id": "w", "started_at": started_at, "ended_at": ended_at}
        with db.transaction() as session:
            session.execute(sa.insert(Attempt).values(**values))

    return add


@pytest.fixture
def limit(db: Database) -> Callable[..., str]:
    """Makes a project with limits, or sets those of one; its id."""

    def put(project_id: str | None = None, **limits: int) -> str:
        with db.transaction() as session:
            project_id = project_id or projects.insert(session, DEFAULT_ORGANIZATION, "p").id
            projects.update(session, DEFAULT_ORGANIZATION, project_id, limits=limits)
        return project_id

    return put


class TestSpans:
    def test_months(self) -> None:
        def at(*date: int) -> float:
            return datetime(*date, tzinfo=UTC).timestamp()  # type: ignore[misc,arg-type]

        assert month_of(at(2028, 2, 29, 23, 59)) == Span(at(2028, 2, 1), at(2028, 3, 1))
        assert month_of(at(2026, 12, 1)) == Span(at(2026, 12, 1), at(2027, 1, 1))

    def test_days(self) -> None:
        assert days_of(Span(0, 180_000)) == [Span(0, 86_400), Span(86_400, 172_800), Span(172_800, 180_000)]


def test_accelerator_seconds_are_those_inside_the_span(
    db: Database, make_job: Callable[..., str], attempt: Callable[..., None]
) -> None:
    wide, narrow = make_job(gpus=4), make_job()
    foreign = make_job(project_id="proj_other", gpus=8)
    attempt(wide, 1, 50, 150)  # half of it inside
    attempt(wide, 2, 190, 250)  # 10 seconds inside
    attempt(narrow, 1, 110, 117)
    attempt(narrow, 2, 10, 90)  # before
    attempt(foreign, 1, 100, 200)
    span = Span(100, 200)
    with db.read() as session:
        assert usage.gpu_seconds(session, DEFAULT_PROJECT, span) == pytest.approx(4 * (50 + 10) + 7)
        assert [(each.job_id, each.gpu_seconds) for each in usage.by_job(session, DEFAULT_PROJECT, span)] == [
            (wide, pytest.approx(240)),
            (narrow, pytest.approx(7)),
        ]
        assert usage.gpu_seconds(session, "proj_none", span) == 0


def test_an_attempt_that_still_runs_counts_until_now(
    db: Database, make_job: Callable[..., str], attempt: Callable[..., None]
) -> None:
    job_id = make_job(gpus=2)
    with db.read() as session:
        clock = usage.clock(session)
    attempt(job_id, 1, clock - 100, None)
    with db.read() as session:
        assert 200 <= usage.gpu_seconds(session, DEFAULT_PROJECT, Span(0, clock + 1000)) < 2 * (1000 + 100)


def test_judge_tokens_are_summed(db: Database, make_job: Callable[..., str]) -> None:
    mine, foreign = make_job(), make_job(project_id="proj_other")
    rows = [
        (mine, DEFAULT_PROJECT, 6, 4, 100),
        (mine, DEFAULT_PROJECT, 5, 0, 300),
        (None, DEFAULT_PROJECT, 20, 1, 150),
        (foreign, "proj_other", 1000, 0, 100),
    ]
    with db.transaction() as session:
        for number, (job_id, project_id, prompt, completion, at) in enumerate(rows):
            row = {"id": str(number), "project_id": project_id, "job_id": job_id, "created_at": float(at)}
            tokens = {"prompt_tokens": prompt, "completion_tokens": completion}
            session.execute(sa.insert(JudgeUsage).values(**row, **tokens))
    with db.read() as session:
        assert usage.judge_tokens(session, DEFAULT_PROJECT, Span(0, 150)) == 10
        assert usage.judge_tokens(session, DEFAULT_PROJECT, Span(0, 200)) == 31
        assert usage.judge_tokens(session, DEFAULT_PROJECT, Span(0, 301)) == 36
        by_job = usage.by_job(session, DEFAULT_PROJECT, Span(0, 301))
        assert [(each.job_id, each.judge_tokens) for each in by_job] == [(mine, 15)]


def test_a_step_counts_once_for_each_attempt_that_made_it(db: Database, make_running: MakeRunning) -> None:
    claim = make_running()
    values = {
        "loss": 1.0,
        "judge_tokens/a/model/prompt": 7.0,
        "judge_tokens/other/completion": 2.0,
        "grader_tokens/judged/prompt": 7.0,
        "sampled_judge_tokens/other/prompt": 30.0,
    }

    def record(epoch: int, step: int) -> bool:
        given: dict[str, Any] = {"step": step, "split": "train", "values": values, "message": "m", "data": {}}
        with db.transaction() as session:
            return metrics.record_step(session, claim.job_id, epoch, **given)

    def used() -> int:
        with db.read() as session:
            return judge_usage.of_job(session, claim.job_id)

    assert record(claim.epoch, 1)
    assert record(claim.epoch, 1)  # the answer to the commit was lost
    assert used() == 39
    assert not record(claim.epoch + 1, 2)
    assert used() == 39
    with db.transaction() as session:
        session.execute(sa.update(Job).where(Job.id == claim.job_id).values(epoch=claim.epoch + 1))
    assert record(claim.epoch + 1, 1)
    assert used() == 78


class TestBudgets:
    def test_only_the_project_beyond_its_budget_is_paused(
        self, db: Database, make_running: MakeRunning, limit: Callable[..., str], get_job: Callable[[str], Job]
    ) -> None:
        over, under = limit(gpu_seconds_per_month=3600), limit(gpu_seconds_per_month=100_000)
        free = limit(files=1)
        claims = {project: make_running(project_id=project) for project in (over, under, free)}
        with db.transaction() as session:
            session.execute(sa.update(Attempt).values(started_at=now() - 7200))
        with db.read() as session:
            clock = usage.clock(session)
        if clock - month_of(clock).start < 7200:
            pytest.skip("the month has only just begun")
        with db.transaction() as session:
            assert hold_budgets(session) == [claims[over].job_id]
        job = get_job(claims[over].job_id)
        assert (job.state, job.desired, job.pause_code) == ("pausing", "pause", "budget_exceeded")
        with db.read() as session:
            message = events.page(session, job.id, before_seq=None, limit=1)[0].message
        assert message.startswith("Pausing after the next checkpoint: the project has used 7200 of its 3600")
        with db.transaction() as session:
            assert jobs.finish(session, job.id, claims[over].epoch, "paused")
        job = get_job(job.id)
        assert (job.state, job.pause_code) == ("paused", "budget_exceeded")
        assert {get_job(claims[each].job_id).state for each in (under, free)} == {"running"}

    def test_judge_tokens_are_a_budget_too(
        self, db: Database, make_job: Callable[..., str], limit: Callable[..., str], get_job: Callable[[str], Job]
    ) -> None:
        job_id = make_job(project_id=limit(judge_tokens_per_month=0))
        with db.transaction() as session:
            assert hold_budgets(session) == [job_id]
        job = get_job(job_id)
        assert (job.state, job.pause_code) == ("paused", "budget_exceeded")
        assert job.pause_message is not None
        assert "0 of its 0 judge tokens" in job.pause_message


class TestRunning:
    def test_a_projects_own_limit_holds_below_that_of_all(
        self, db: Database, make_job: Callable[..., str], limit: Callable[..., str]
    ) -> None:
        narrow = limit(running_jobs=1)
        for _ in range(2):
            make_job(project_id=narrow)
        other = [make_job() for _ in range(3)]
        taken = []
        with db.transaction() as session:
            while (claim := jobs.claim_next(session, Slot("w"), 60, max_running=2)) is not None:
                taken.append(claim)
        assert sorted(claim.project_id for claim in taken) == sorted([narrow, DEFAULT_PROJECT, DEFAULT_PROJECT])
        assert len({claim.job_id for claim in taken} & set(other)) == 2

    def test_without_a_limit_of_all(
        self, db: Database, make_job: Callable[..., str], limit: Callable[..., str]
    ) -> None:
        narrow = limit(running_jobs=0)
        make_job(project_id=narrow)
        free = make_job()
        with db.transaction() as session:
            claim = jobs.claim_next(session, Slot("w"), 60)
            assert claim is not None
            assert claim.job_id == free
            assert jobs.claim_next(session, Slot("w"), 60) is None


def test_limits_over_those_of_the_installation() -> None:
    settings = Settings(max_queued_jobs=5, max_running_jobs=3, rate_read=7)
    found = ProjectLimits(running_jobs=9, files=2).over(settings)
    assert (found.queued_jobs, found.running_jobs, found.read_requests_per_minute, found.files) == (5, 3, 7, 2)
    assert ProjectLimits(running_jobs=1, queued_jobs=50).over(settings).running_jobs == 1
    assert ProjectLimits(queued_jobs=50).over(settings).queued_jobs == 50
