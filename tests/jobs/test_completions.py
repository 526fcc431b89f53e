"""The queue of chat completions on both databases: whose turn it is, what goes together, and who may write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.db import Database, now
from jobs.ids import COMPLETION, new_id
from jobs.repositories import completions, generators
from jobs.repositories.completions import Claimed
from jobs.tables import Completion, CompletionBlock

Ask = Callable[..., str]


@pytest.fixture
def ask(db: Database) -> Ask:
    """Queues a completion and returns its id."""

    def make(project: str = "a", batch_key: str | None = "same", timeout_s: float = 60.0, **values: Any) -> str:
        row = Completion(
            id=new_id(COMPLETION),
            project_id=project,
            model="tiny",
            base_model="tiny",
            batch_key=batch_key,
            request={"messages": []},
            **values,
        )
        with db.transaction() as session:
            return completions.insert(session, row, timeout_s).id

    return make


def claim(db: Database, owner: str = "g1", *, limit: int = 8, lease_s: float = 60) -> list[Claimed]:
    with db.transaction() as session:
        return completions.claim(session, owner, lease_s, limit)


def ids(claimed: list[Claimed]) -> list[str]:
    return [one.id for one in claimed]


def get(db: Database, id_: str) -> Completion:
    with db.read() as session:
        return session.get_one(Completion, id_)


def test_what_goes_together_is_claimed_together(db: Database, ask: Ask) -> None:
    first, other, second, third = ask(), ask(batch_key="other"), ask(), ask()
    assert ids(claim(db, limit=2)) == [first, second]
    assert ids(claim(db)) == [other]
    assert ids(claim(db)) == [third]
    assert claim(db) == []


def test_a_request_with_a_seed_goes_alone(db: Database, ask: Ask) -> None:
    first, second = ask(batch_key=None), ask(batch_key=None)
    assert ids(claim(db)) == [first]
    assert ids(claim(db)) == [second]


def test_projects_take_turns(db: Database, ask: Ask) -> None:
    many = [ask("a", None) for _ in range(3)]
    late = ask("b", None)
    assert [ids(claim(db))[0] for _ in range(4)] == [many[0], late, many[1], many[2]]


def test_counts_what_waits(db: Database, ask: Ask) -> None:
    ask("a"), ask("b"), ask("b")
    with db.transaction() as session:
        assert completions.count_waiting(session, "b") == (3, 2)
    claim(db, limit=1)
    with db.transaction() as session:
        assert completions.count_waiting(session, "b") == (2, 2)


def test_blocks_and_an_end(db: Database, ask: Ask) -> None:
    id_ = ask()
    (claimed,) = claim(db)
    with db.transaction() as session:
        assert completions.write_block(session, id_, claimed.epoch, 0, "one\x00")
        assert completions.write_block(session, id_, claimed.epoch, 1, "two")
    with db.read() as session:
        assert completions.progress(session, [id_])[id_] == completions.Progress("running", 2)
        assert completions.blocks(session, {id_: 1}) == {id_: ["two"]}
        assert completions.blocks(session, {id_: 0}) == {id_: ["one\ufffd", "two"]}
    with db.transaction() as session:
        assert completions.finish(session, id_, claimed.epoch, "stop", 5, 7)
    row = get(db, id_)
    assert (row.state, row.finish_reason, row.prompt_tokens, row.completion_tokens) == ("done", "stop", 5, 7)
    assert row.finished_at is not None


def test_who_lost_the_claim_writes_nothing(db: Database, ask: Ask) -> None:
    id_ = ask()
    (old,) = claim(db)
    with db.transaction() as session:
        assert completions.hand_back(session, id_, old.epoch, spend=False)
    (new,) = claim(db, "g2")
    with db.transaction() as session:
        assert not completions.write_block(session, id_, old.epoch, 0, "x")
        assert not completions.finish(session, id_, old.epoch, "stop", 1, 1)
        assert not completions.fail(session, id_, old.epoch, "c", "m")
        assert not completions.hand_back(session, id_, old.epoch, spend=True)
        assert completions.renew(session, "g1", [id_], 60) == set()
        assert completions.renew(session, "g2", [id_], 60) == {id_}
    assert (get(db, id_).state, get(db, id_).epoch, new.epoch) == ("running", 2, 2)


def test_a_lost_generator_costs_one_more_try_and_then_the_request(db: Database, ask: Ask) -> None:
    first, second = ask(), ask()
    (claimed, _) = claim(db, lease_s=-1)
    with db.transaction() as session:
        completions.write_block(session, first, claimed.epoch, 0, "begun")
    with db.transaction() as session:
        assert set(completions.reap(session)) == {first, second}
    again = claim(db, lease_s=-1)
    assert ids(again) == [first], "what may have killed a generator goes alone"
    assert again[0].written == ("begun",)
    with db.transaction() as session:
        assert completions.reap(session) == [first]
    assert (get(db, first).state, get(db, first).error_code) == ("failed", "generation_failed")
    assert get(db, second).state == "queued"


def test_a_generator_that_stops_costs_no_try(db: Database, ask: Ask) -> None:
    id_ = ask()
    for _ in range(3):
        (claimed,) = claim(db)
        with db.transaction() as session:
            assert completions.hand_back(session, id_, claimed.epoch, spend=False)
    assert (get(db, id_).state, get(db, id_).failures) == ("queued", 0)


def test_what_is_late_fails_waiting_or_not(db: Database, ask: Ask) -> None:
    running = ask()
    claim(db)
    waiting = ask(timeout_s=-1)
    assert claim(db) == [], "nobody begins what is late"
    with db.transaction() as session:
        session.execute(sa.update(Completion).where(Completion.id == running).values(deadline=now() - 1))
    with db.transaction() as session:
        assert completions.expire(session) == 2
    assert [(get(db, id_).state, get(db, id_).error_code) for id_ in (running, waiting)] == [("failed", "timeout")] * 2


def test_cancelled_ones_are_not_begun_and_not_finished(db: Database, ask: Ask) -> None:
    running = ask()
    (claimed,) = claim(db)
    waiting = ask()
    with db.transaction() as session:
        assert completions.cancel(session, [running, waiting]) == 2
    assert claim(db) == []
    with db.transaction() as session:
        assert not completions.finish(session, running, claimed.epoch, "stop", 1, 1)
        assert completions.cancel(session, [running]) == 0


def test_texts_are_forgotten_and_the_usage_is_not(db: Database, ask: Ask) -> None:
    id_, alone, waiting = ask(), ask(batch_key=None), ask()
    with db.transaction() as session:
        session.execute(sa.update(Completion).where(Completion.id == waiting).values(batch_key="later"))
    for one in (*claim(db), *claim(db)):
        if one.id in (id_, alone):
            with db.transaction() as session:
                completions.write_block(session, one.id, one.epoch, 0, "secret")
                completions.finish(session, one.id, one.epoch, "stop", 5, 7)
    with db.transaction() as session:
        assert completions.forget(session, 60) == 0
        assert completions.forget(session, -1) == 2
        assert completions.forget(session, -1) == 0
    with db.read() as session:
        assert session.scalars(sa.select(CompletionBlock)).all() == []
    assert [(get(db, one).request, get(db, one).prompt_tokens) for one in (id_, alone)] == [({}, 5)] * 2
    assert get(db, waiting).request == {"messages": []}


def test_three_months_later_the_rows_go_as_well(db: Database, ask: Ask) -> None:
    id_ = ask()
    (claimed,) = claim(db)
    with db.transaction() as session:
        completions.finish(session, id_, claimed.epoch, "stop", 5, 7)
    for age, there in ((92, True), (94, False)):
        with db.transaction() as session:
            session.execute(sa.update(Completion).values(finished_at=now() - age * 86_400))
            completions.forget(session, 60)
        with db.read() as session:
            assert (session.get(Completion, id_) is not None) is there, "usage is computed from the rows"


def test_generators_are_live_while_they_are_seen(db: Database) -> None:
    with db.transaction() as session:
        assert not generators.any_live(session)
        for models in ([], ["tiny"]):
            generators.beat(session, "g1", host="h", pid=1, device="cpu", version="1", models=models)
        assert generators.any_live(session)
        assert generators.any_live(session, "h")
        assert not generators.any_live(session, "another")
        session.execute(sa.text("UPDATE generators SET last_seen = last_seen - 100"))
        assert not generators.any_live(session)
        generators.forget(session, unseen_for_s=50)
        assert session.scalar(sa.text("SELECT count(*) FROM generators")) == 0
