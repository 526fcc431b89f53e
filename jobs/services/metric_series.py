"""A job's metric values for its users: page by page, or thinned out, or the first steps only.

A job can have millions of values, so nobody ever holds all of them: `values` reads a page at a time, each with a
session of its own. What is written meanwhile appears where its step stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from jobs.context import Context
from jobs.repositories import metrics
from jobs.repositories.metrics import Key, Selection, Value
from jobs.services.jobs import find

_PAGE = 5000


@dataclass(frozen=True)
class Series:
    """Values by step, split and name."""

    values: Iterator[Value]
    names: list[str]
    """All that occur."""
    has_more: bool
    """There are later steps than those asked for."""


def series(
    ctx: Context,
    project_id: str,
    job_id: str,
    wanted: Selection,
    *,
    steps: int | None = None,
    most: int | None = None,
) -> Series:
    """The wanted values. Raises NotFound.

    Args:
        steps: of that many steps only, the first.
        most: of each series only that many values, see `metrics.downsampled`.
    """
    with ctx.db.read() as session:
        find(session, project_id, job_id)
        has_more = False
        if steps is not None:
            found = metrics.steps(session, job_id, wanted, steps + 1)
            has_more = len(found) > steps
            if has_more:
                wanted = replace(wanted, until_step=found[steps - 1])
        names = metrics.names(session, job_id, wanted)
        wanted = replace(wanted, names=names)  # a table has its columns before its rows
        if most is not None:
            return Series(iter(metrics.downsampled(session, job_id, wanted, most)), names, has_more)
    pages = _pages(ctx, job_id, wanted)
    first = next(pages, [])  # read now: a database that fails is then still an error of the request
    return Series(chain(first, chain.from_iterable(pages)), names, has_more)


def _pages(ctx: Context, job_id: str, wanted: Selection) -> Iterator[list[Value]]:
    after: Key | None = None
    while True:
        with ctx.db.read() as session:
            page = metrics.page(session, job_id, wanted, after=after, limit=_PAGE)
        if not page:
            return
        yield page
        after = page[-1].key
