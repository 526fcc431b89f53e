"""What goes to a project's endpoints, from the end of a job to receivers on loopback, on both databases."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import openai
import pytest
import sqlalchemy as sa
import structlog

from jobs.context import Context
from jobs.db import Database
from jobs.repositories import job_rows, jobs, webhooks
from jobs.services import webhook_endpoints as service
from jobs.services.webhook_endpoints import Shown
from jobs.services.webhooks import deliver_due, redeliver
from jobs.settings import Settings
from jobs.states import State
from jobs.tables import DEFAULT_PROJECT, Delivery, WebhookEndpoint
from jobs.webhooks import EventType
from jobs.wire.webhooks import CreateWebhookEndpoint, UpdateWebhookEndpoint
from tests.jobs.receivers import OK, Receiver, Request, receiver, saying, status

OWN = "whsec_" + base64.b64encode(b"s" * 32).decode()
KEY, OTHER_KEY = (base64.b64encode(letter * 32).decode() for letter in (b"k", b"l"))
UNREACHED = "https://receiver.example/"

Make = Callable[..., str]
MakeEndpoint = Callable[..., Shown]


@pytest.fixture
def ctx(database_url: str, tmp_path: Path) -> Iterator[Context]:
    """Of a service that signs with a secret of its own, too, and may reach loopback."""
    opened = Context.open(
        Settings(
            home=tmp_path / "home",
            database_url=database_url,
            secrets_key=KEY,
            webhook_secret=OWN,
            webhook_allow_private=True,
            webhook_timeout_s=20,
        )
    )
    yield opened
    opened.close()


@pytest.fixture
def db(ctx: Context) -> Database:
    """The same database for the fixtures that store jobs."""
    return ctx.db


@pytest.fixture
def make_endpoint(ctx: Context) -> MakeEndpoint:
    """Stores an endpoint for all events."""

    def make(url: str = UNREACHED, *, project: str = DEFAULT_PROJECT, **changes: Any) -> Shown:
        given = {"name": "hook", "url": url, "event_types": list(get_args(EventType))} | changes
        return service.create(ctx, project, CreateWebhookEndpoint.model_validate(given))

    return make


def hook(server: Receiver) -> str:
    return f"http://127.0.0.1:{server.port}/hook?token=hush"


def cancel(ctx: Context, job_id: str) -> None:
    with ctx.db.transaction() as session:
        job_rows.cancel(session, DEFAULT_PROJECT, job_id)


def deliveries(ctx: Context, job_id: str) -> dict[str | None, Delivery]:
    """By endpoint."""
    with ctx.db.read() as session:
        rows = webhooks.of_job(session, job_id)
    found = {row.endpoint_id: row for row in rows}
    assert len(found) == len(rows)
    return found


def change(ctx: Context, endpoint: WebhookEndpoint, **wish: Any) -> WebhookEndpoint:
    return service.update(ctx, endpoint.project_id, endpoint.id, UpdateWebhookEndpoint.model_validate(wish))


def skip_wait(ctx: Context) -> None:
    with ctx.db.transaction() as session:
        session.execute(sa.update(Delivery).values(next_at=0))


def deliver(ctx: Context, **changes: Any) -> int:
    return deliver_due(Settings(**(ctx.settings.model_dump() | changes)), ctx.db)


def accepts(secret: str, request: Request) -> bool:
    try:
        openai.OpenAI(api_key="any").webhooks.unwrap(request.body, request.headers, secret=secret)
    except openai.InvalidWebhookSignatureError:
        return False
    return True


def test_each_end_goes_to_whoever_listens_signed_by_its_own_secret(
    ctx: Context, make_job: Make, make_endpoint: MakeEndpoint
) -> None:
    with receiver(saying(OK)) as own, receiver(saying(OK)) as one, receiver(saying(OK)) as two:
        first, second = make_endpoint(hook(one)), make_endpoint(hook(two))
        make_endpoint(event_types=["fine_tuning.job.failed"])
        make_endpoint(project="proj_other")
        job_id = make_job(webhook_url=hook(own))
        for _ in range(2):
            cancel(ctx, job_id)
        assert set(deliveries(ctx, job_id)) == {None, first.endpoint.id, second.endpoint.id}
        assert deliver(ctx) == 3
        assert deliver(ctx) == 0
    secrets = {own.port: OWN, one.port: first.secret, two.port: second.secret}
    for server in (own, one, two):
        (request,) = server.requests
        accepted = [port for port, secret in secrets.items() if accepts(secret, request)]
        assert accepted == [server.port]
    event = openai.OpenAI(api_key="any").webhooks.unwrap(
        one.requests[0].body, one.requests[0].headers, secret=first.secret
    )
    assert (event.type, event.to_dict()["data"]) == ("fine_tuning.job.cancelled", {"id": job_id})
    rows = deliveries(ctx, job_id)
    assert {row.state for row in rows.values()} == {"delivered"}
    assert len({row.id for row in rows.values()}) == 3


@pytest.mark.parametrize("end", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
def test_an_endpoint_gets_the_types_it_names(
    ctx: Context, make_job: Make, make_endpoint: MakeEndpoint, end: State
) -> None:
    made = {name: make_endpoint(event_types=[name]).endpoint.id for name in get_args(EventType)}
    job_id = make_job(state=end)
    with ctx.db.transaction() as session:
        webhooks.enqueue(session, job_id)
    assert list(deliveries(ctx, job_id)) == [made[f"fine_tuning.job.{end.value}"]]


def test_without_a_secret_of_the_installation_endpoints_get_theirs(
    ctx: Context, make_job: Make, make_endpoint: MakeEndpoint
) -> None:
    with receiver(saying(OK)) as own, receiver(saying(OK)) as server:
        endpoint = make_endpoint(hook(server)).endpoint
        job_id = make_job(webhook_url=hook(own))
        cancel(ctx, job_id)
        assert deliver(ctx, webhook_secret=None) == 1
    rows = deliveries(ctx, job_id)
    assert (rows[endpoint.id].state, rows[None].state, rows[None].attempts) == ("delivered", "pending", 0)
    assert own.connections == 0


def test_an_inactive_endpoint_gets_no_events_and_its_own_wait(
    ctx: Context, make_job: Make, make_endpoint: MakeEndpoint
) -> None:
    with receiver(saying(OK)) as server:
        endpoint = make_endpoint(hook(server)).endpoint
        before, meanwhile = make_job(), make_job()
        cancel(ctx, before)
        change(ctx, endpoint, rl={"active": False})
        cancel(ctx, meanwhile)
        assert deliver(ctx) == 0
        assert deliveries(ctx, meanwhile) == {}
        change(ctx, endpoint, rl={"active": True})
        assert deliver(ctx) == 1
    assert deliveries(ctx, before)[endpoint.id].state == "delivered"


def test_what_is_pending_goes_to_the_new_url(ctx: Context, make_job: Make, make_endpoint: MakeEndpoint) -> None:
    with receiver(saying(status(500))) as old, receiver(saying(OK)) as new:
        made = make_endpoint(hook(old))
        job_id = make_job()
        cancel(ctx, job_id)
        deliver(ctx)
        change(ctx, made.endpoint, url=hook(new))
        skip_wait(ctx)
        deliver(ctx)
    row = deliveries(ctx, job_id)[made.endpoint.id]
    assert (row.state, row.attempts) == ("delivered", 2)
    assert new.requests[0].body == old.requests[0].body
    assert accepts(made.secret, new.requests[0])


def test_a_deleted_endpoint_gets_nothing_more(ctx: Context, make_job: Make, make_endpoint: MakeEndpoint) -> None:
    with receiver(saying(OK)) as server:
        gone, stays = make_endpoint(hook(server)).endpoint, make_endpoint(hook(server)).endpoint
        job_id = make_job()
        cancel(ctx, job_id)
        service.delete(ctx, DEFAULT_PROJECT, gone.id)
        assert list(deliveries(ctx, job_id)) == [stays.id]
        assert deliver(ctx) == 1


def test_deleting_while_a_try_runs(ctx: Context, make_job: Make, make_endpoint: MakeEndpoint) -> None:
    """The sender finds its row gone, whatever the receiver said, and writes nothing."""
    gone = threading.Event()

    def answer(request: Request, connection: Any) -> None:
        gone.wait(30)
        connection.sendall(status(410))

    with receiver(answer) as server, structlog.testing.capture_logs() as logs:
        endpoint = make_endpoint(hook(server)).endpoint
        job_id = make_job()
        cancel(ctx, job_id)
        sending = threading.Thread(target=deliver, args=(ctx,))
        sending.start()
        server.wait(1)
        service.delete(ctx, DEFAULT_PROJECT, endpoint.id)
        gone.set()
        sending.join()
    assert deliveries(ctx, job_id) == {}
    assert [entry["error"] for entry in logs if entry["event"] == "webhook not delivered"] == [
        "the receiver answered 410: it wants no more webhooks"
    ]


def test_jobs_end_while_endpoints_are_deleted(ctx: Context, make_job: Make, make_endpoint: MakeEndpoint) -> None:
    """Neither fails for the other, and no delivery is left without its endpoint."""
    endpoints = [make_endpoint().endpoint.id for _ in range(8)]
    job_ids = [make_job() for _ in range(8)]
    barrier, failed = threading.Barrier(2), []

    def all_of(work: Callable[[str], None], ids: list[str]) -> None:
        barrier.wait()
        try:
            for each in ids:
                work(each)
        except Exception as error:  # thread boundary: asserted below
            failed.append(error)

    threads = [
        threading.Thread(target=all_of, args=(lambda each: service.delete(ctx, DEFAULT_PROJECT, each), endpoints)),
        threading.Thread(target=all_of, args=(lambda each: cancel(ctx, each), job_ids)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    for job_id in job_ids:
        assert deliveries(ctx, job_id) == {}
        with ctx.db.read() as session:
            found = job_rows.get(session, DEFAULT_PROJECT, job_id)
        assert found is not None
        assert found.state == State.CANCELLED


def test_an_end_waits_for_a_deletion_under_way(ctx: Context, make_job: Make, make_endpoint: MakeEndpoint) -> None:
    """And then writes nothing: a row for an endpoint that is gone would undo the end of the job."""
    endpoint, job_id = make_endpoint().endpoint, make_job()
    ending = threading.Thread(target=cancel, args=(ctx, job_id))
    with ctx.db.transaction() as session:
        session.execute(sa.delete(WebhookEndpoint).where(WebhookEndpoint.id == endpoint.id))
        ending.start()
        ending.join(0.5)
        assert ending.is_alive()
    ending.join()
    assert deliveries(ctx, job_id) == {}
    with ctx.db.read() as session:
        found = job_rows.get(session, DEFAULT_PROJECT, job_id)
    assert found is not None
    assert found.state == State.CANCELLED


def test_an_end_is_told_once_to_the_endpoints_there_were(
    ctx: Context, make_running: Callable[..., jobs.Claim], make_endpoint: MakeEndpoint
) -> None:
    made = {make_endpoint().endpoint.id for _ in range(2)}
    claim = make_running()
    cancel(ctx, claim.job_id)
    make_endpoint()  # after the end that clients see
    with ctx.db.transaction() as session:
        jobs.finish(session, claim.job_id, claim.epoch, State.CANCELLED)
    rows = deliveries(ctx, claim.job_id)
    assert set(rows) == made
    assert {row.type for row in rows.values()} == {"fine_tuning.job.cancelled"}


class TestSecrets:
    def rotated(
        self, ctx: Context, make_job: Make, endpoint: WebhookEndpoint, server: Receiver, *, keep_old: bool
    ) -> tuple[Shown, Request]:
        """The endpoint with another secret, and what came of a job since."""
        shown = service.rotate(ctx, DEFAULT_PROJECT, endpoint.id, keep_old=keep_old)
        cancel(ctx, make_job())
        deliver(ctx)
        return shown, server.requests[-1]

    def test_the_old_one_signs_for_a_day_if_it_is_to(
        self, ctx: Context, make_job: Make, make_endpoint: MakeEndpoint
    ) -> None:
        with receiver(saying(OK)) as server:
            first = make_endpoint(hook(server))
            second, request = self.rotated(ctx, make_job, first.endpoint, server, keep_old=True)
            assert accepts(first.secret, request)
            assert accepts(second.secret, request)
            assert len(request.headers["webhook-signature"].split()) == 2
            until = second.endpoint.old_until
            assert until is not None
            assert until - second.endpoint.updated_at == pytest.approx(24 * 3600, abs=1)
            with ctx.db.transaction() as session:  # a day later
                session.execute(sa.update(WebhookEndpoint).values(old_until=WebhookEndpoint.old_until - 24 * 3600))
            cancel(ctx, make_job())
            deliver(ctx)
        assert not accepts(first.secret, server.requests[-1])
        assert accepts(second.secret, server.requests[-1])

    def test_else_it_ends_at_once_also_an_older_one(
        self, ctx: Context, make_job: Make, make_endpoint: MakeEndpoint
    ) -> None:
        with receiver(saying(OK)) as server:
            first = make_endpoint(hook(server))
            second, _ = self.rotated(ctx, make_job, first.endpoint, server, keep_old=True)
            third, request = self.rotated(ctx, make_job, first.endpoint, server, keep_old=False)
        assert [accepts(shown.secret, request) for shown in (first, second, third)] == [False, False, True]
        assert third.endpoint.old_ciphertext is None

    def test_no_value_is_in_the_database_or_a_log(self, ctx: Context, make_endpoint: MakeEndpoint) -> None:
        with structlog.testing.capture_logs() as logs:
            made = make_endpoint()
            again = service.rotate(ctx, DEFAULT_PROJECT, made.endpoint.id, keep_old=True)
        with ctx.db.read() as session:
            stored = str(session.execute(sa.select(WebhookEndpoint.__table__)).mappings().all())
        for secret in (made.secret, again.secret):
            assert secret.removeprefix("whsec_") not in stored + str(logs) + repr(made) + repr(again)

    def test_a_secret_of_another_row_does_not_open(
        self, ctx: Context, make_job: Make, make_endpoint: MakeEndpoint
    ) -> None:
        one, two = make_endpoint().endpoint, make_endpoint().endpoint
        with ctx.db.transaction() as session:
            moved = sa.update(WebhookEndpoint).where(WebhookEndpoint.id == one.id).values(ciphertext=two.ciphertext)
            session.execute(moved)
        job_id = make_job()
        cancel(ctx, job_id)
        with receiver(saying(OK)) as server:
            for endpoint in (one, two):
                change(ctx, endpoint, url=hook(server))
            deliver(ctx)
        rows = deliveries(ctx, job_id)
        assert (rows[one.id].state, rows[two.id].state) == ("pending", "delivered")

    @pytest.mark.parametrize("key", [OTHER_KEY, None])
    def test_with_a_lost_key_tries_fail_until_the_secret_is_rotated(
        self, ctx: Context, make_job: Make, make_endpoint: MakeEndpoint, key: str | None
    ) -> None:
        with receiver(saying(OK)) as server:
            endpoint = make_endpoint(hook(server)).endpoint
            job_id = make_job()
            cancel(ctx, job_id)
            assert deliver(ctx, secrets_key=key) == 1
            row = deliveries(ctx, job_id)[endpoint.id]
            assert (row.state, row.attempts) == ("pending", 1)
            assert row.last_error == "the service cannot read the endpoint's signing secret: rotate it"
            service.rotate(ctx, DEFAULT_PROJECT, endpoint.id, keep_old=False)
            skip_wait(ctx)
            assert deliver(ctx) == 1
        assert (len(server.requests), deliveries(ctx, job_id)[endpoint.id].state) == (1, "delivered")


def test_the_rules_of_egress_hold_at_each_try(ctx: Context, make_job: Make, make_endpoint: MakeEndpoint) -> None:
    with receiver(saying(OK)) as server:
        ports = (443, server.port)
        endpoint = make_endpoint(f"https://127.0.0.1:{server.port}/").endpoint
        job_id = make_job()
        cancel(ctx, job_id)
        deliver(ctx, webhook_allow_private=False, egress_ports=ports)
    assert server.connections == 0
    row = deliveries(ctx, job_id)[endpoint.id]
    assert row.last_error == "the URL leads to an address that is not public"


def test_a_dead_one_is_sent_again_to_its_endpoint(ctx: Context, make_job: Make, make_endpoint: MakeEndpoint) -> None:
    with receiver(saying(status(410), OK)) as server:
        made = make_endpoint(hook(server))
        job_id = make_job()
        cancel(ctx, job_id)
        deliver(ctx)
        dead = deliveries(ctx, job_id)[made.endpoint.id]
        assert dead.state == "dead"
        redeliver(ctx, DEFAULT_PROJECT, job_id, dead.id)
        deliver(ctx)
    assert accepts(made.secret, server.requests[1])
    assert deliveries(ctx, job_id)[made.endpoint.id].state == "delivered"
