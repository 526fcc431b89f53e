"""Series of metrics on both databases: thinned out as the definition says, and page by page without loss."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from jobs.context import Context
from jobs.db import Database
from jobs.errors import NotFound
from jobs.ids import JOB, new_id
from jobs.repositories import metrics
from jobs.repositories.metrics import Selection, Value
from jobs.services import metric_series
from jobs.settings import Settings
from jobs.tables import DEFAULT_PROJECT, Metric

ALL = Selection()


@pytest.fixture
def ctx(database_url: str, tmp_path: Path) -> Any:
    settings = Settings(home=tmp_path / "home", database_url=database_url, redis_url=SecretStr("redis://127.0.0.1:1/0"))
    context = Context.open(settings)
    yield context
    context.close()


def store(db: Database, job_id: str, values: list[Value]) -> None:
    rows = [value._asdict() | {"job_id": job_id, "epoch": 1, "created_at": 0.0} for value in values]
    with db.transaction() as session:
        session.execute(sa.insert(Metric), rows)


def by_hand(values: list[Value], most: int) -> set[Value]:
    """What stays of one series."""
    if len(values) <= most:
        return set(values)
    runs = (most - 2) // 2
    size, longer = divmod(len(values), runs)
    kept, start = {values[0], values[-1]}, 0
    for run in range(runs):
        end = start + size + (run < longer)
        kept.add(min(values[start:end], key=lambda value: (value.value, value.step)))
        kept.add(min(values[start:end], key=lambda value: (-value.value, value.step)))
        start = end
    return kept


@pytest.mark.parametrize("most", [4, 5, 6, 11, 50])
def test_downsampling_is_its_definition(db: Database, make_job: Callable[..., str], most: int) -> None:
    draw = random.Random(most)
    job_id, other = make_job(), make_job()
    stored: list[list[Value]] = []
    for split in ("train", "validation"):
        for name, count in (("loss", 97), ("few", most), ("one more", most + 1), ("flat", 40)):
            steps = sorted(draw.sample(range(1000), count))
            level = [0.5] if name == "flat" else [1.0, 2.0, 3.0, -4.5, 1e9]  # ties
            stored.append([Value(step, split, name, draw.choice(level)) for step in steps])
    for job in (job_id, other):
        store(db, job, [value for one in stored for value in one])
    with db.read() as session:
        found = metrics.downsampled(session, job_id, ALL, most)
        part = metrics.downsampled(session, job_id, Selection(["loss"], "train", 100, 800), most)
    assert found == sorted(set().union(*(by_hand(one, most) for one in stored)))
    assert part == sorted(by_hand([value for value in stored[0] if 100 <= value.step <= 800], most))
    for one in stored:
        kept = [value for value in found if value in set(one)]
        assert len(kept) <= most
        assert {one[0], one[-1]} <= set(kept)
        assert {max(v.value for v in one), min(v.value for v in one)} <= {v.value for v in kept}


def test_pages_give_everything_once_in_order(
    ctx: Context, make_job: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = make_job()
    values = [
        Value(step, split, name, step / 7) for step in range(9) for split in ("train", "validation") for name in "abc"
    ]
    store(ctx.db, job_id, random.Random(1).sample(values, len(values)))
    for size in (1, 4, 54, 1000):
        monkeypatch.setattr(metric_series, "_PAGE", size)
        found = metric_series.series(ctx, DEFAULT_PROJECT, job_id, ALL)
        assert list(found.values) == values
        assert (found.names, found.has_more) == (["a", "b", "c"], False)


def test_a_limit_counts_steps_and_never_cuts_one(ctx: Context, make_job: Callable[..., str]) -> None:
    job_id = make_job()
    values = [Value(step, split, "a", 1.0) for step in (0, 3, 4, 9) for split in ("train", "validation")]
    store(ctx.db, job_id, values)
    seen: list[Value] = []
    since = 0
    for expected in (True, False):
        found = metric_series.series(ctx, DEFAULT_PROJECT, job_id, Selection(since_step=since), steps=2)
        page = list(found.values)
        assert len({value.step for value in page}) == 2
        assert found.has_more is expected
        seen += page
        since = page[-1].step + 1
    assert seen == values


def test_nothing_of_others(ctx: Context, make_job: Callable[..., str]) -> None:
    job_id = make_job(project_id="proj_other")
    for wrong in (job_id, new_id(JOB)):
        with pytest.raises(NotFound):
            metric_series.series(ctx, DEFAULT_PROJECT, wrong, ALL)
