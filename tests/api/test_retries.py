"""Nothing is made twice: Idempotency-Key, the client's own retries, and answers that never arrive."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
import sqlalchemy as sa

from api.once import kept_alive
from jobs.db import now
from jobs.errors import InProgress
from jobs.repositories.requests import Wanted
from jobs.services import once, upkeep
from jobs.services.once import Ticket
from jobs.tables import DEFAULT_PROJECT, File, Job, Part, RequestRow, Upload
from tests.api.cutting import cutting_proxy
from tests.api.test_files import error_of, stored

RETRY = "x-stainless-retry-count"
JOBS = "/v1/fine_tuning/jobs"
BOTH = pytest.mark.parametrize("kind", ["sqlite", "postgresql"])


@pytest.fixture
def start(start_service: Callable[..., Any], request: pytest.FixtureRequest, kind: str) -> Callable[..., Any]:
    """Starts a service on one kind of database."""

    def make(**values: Any) -> Any:
        if kind == "postgresql":
            values["database_url"] = request.getfixturevalue("new_postgres_database")()
        return start_service(max_queued_jobs=1000, **values)

    return make


def post_file(service: Any, content: bytes, name: str = "a", **headers: str) -> Any:
    with service.http(headers={key.replace("_", "-"): value for key, value in headers.items()}) as http:
        return http.post("/v1/files", data={"purpose": "batch"}, files={"file": (name, content)})


def post_job(service: Any, body: dict[str, Any], path: str = "", **headers: str) -> Any:
    with service.http(headers={key.replace("_", "-"): value for key, value in headers.items()}) as http:
        return http.post(f"{JOBS}{path}", json=body)


def count(service: Any, table: Any) -> int:
    with service.ctx.db.read() as session:
        found: int = session.scalars(sa.select(sa.func.count()).select_from(table)).one()
        return found


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


class TestKeys:
    """`Idempotency-Key` for files, uploads and parts; that of jobs is in test_jobs and test_again."""

    def test_the_same_key_gives_the_same_object(self, service: Any) -> None:
        announced = {"bytes": 3, "filename": "x", "mime_type": "text/plain", "purpose": "batch"}
        first = post_file(service, b"abc", idempotency_key="k").json()
        assert post_file(service, b"abc", idempotency_key="k").json() == first
        other = post_file(service, b"abd", idempotency_key="k")
        assert error_of(other, 409)["code"] == "idempotency_key_reused"
        assert other.headers["x-should-retry"] == "false"
        assert post_file(service, b"abc", idempotency_key="k2").json()["id"] != first["id"]
        with service.http(headers={"idempotency-key": "k"}) as http:
            upload = http.post("/v1/uploads", json=announced).json()
            assert http.post("/v1/uploads", json=announced).json() == upload, "kinds of objects have their own keys"
            error_of(http.post("/v1/uploads", json=announced | {"bytes": 4}), 409)
            parts = [http.post(f"/v1/uploads/{upload['id']}/parts", files={"data": b"abc"}).json() for _ in "12"]
            assert parts[0] == parts[1]
            error_of(http.post("/v1/files", files={"file": b"x"}, headers={"idempotency-key": "k" * 256}))
        assert (count(service, File), count(service, Upload), count(service, Part)) == (2, 1, 1)
        assert len(stored(service)) == 2

    def test_a_request_that_made_nothing_leaves_its_key_free(self, service: Any) -> None:
        error_of(post_file(service, b"", idempotency_key="k"))
        assert post_file(service, b"abc", idempotency_key="k").status_code == 200

    def test_keys_are_forgotten_after_a_day(self, service: Any) -> None:
        first = post_file(service, b"abc", idempotency_key="k").json()
        for age_s, same in ((upkeep.REMEMBER_REQUESTS_S - 60, True), (upkeep.REMEMBER_REQUESTS_S + 60, False)):
            with service.ctx.db.transaction() as session:
                session.execute(sa.update(RequestRow).values(created_at=now() - age_s))
            upkeep.tend(service.ctx.settings, service.ctx.db, service.ctx.store)
            assert (post_file(service, b"abc", idempotency_key="k").json()["id"] == first["id"]) is same

    @BOTH
    def test_twins_at_the_same_time(self, start: Callable[..., Any]) -> None:
        service = start()
        answers = at_once([lambda: post_file(service, b"abc" * 300_000, idempotency_key="k")] * 6)
        assert [answer.status_code for answer in answers] == [200] * 6, [answer.text for answer in answers]
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert (count(service, File), len(stored(service))) == (1, 1)


class TestRetriesOfTheClient:
    def test_a_retry_gets_what_the_first_try_made(self, service: Any) -> None:
        body = service.body(training_file=service.upload(service.rows()).json()["id"])
        for post, table in (
            (lambda **headers: post_file(service, b"abc", **headers), File),
            (lambda **headers: post_job(service, body, **headers), Job),
        ):
            first, second = (post(x_stainless_retry_count="0").json()["id"] for _ in "12")
            assert first != second, "two first tries are two wishes"
            before = count(service, table)
            retries = [post(x_stainless_retry_count=str(number)).json()["id"] for number in (1, 2)]
            assert retries == [second, second]
            assert post(x_stainless_retry_count="1").json()["id"] == first, "another client's retry, for its own twin"
            assert count(service, table) == before

    def test_what_differs_is_no_twin(self, service: Any) -> None:
        first = post_file(service, b"abc").json()["id"]
        for content, name in ((b"abd", "a"), (b"abc", "b")):
            assert post_file(service, content, name, x_stainless_retry_count="1").json()["id"] != first
        job = post_job(service, service.body(training_file=service.upload(service.rows()).json()["id"])).json()["id"]
        clones = [post_job(service, {}, f"/{job}/clone", **{RETRY: retry}).json()["id"] for retry in ("0", "1")]
        assert len({job, *clones}) == 2

    def test_a_retry_of_job_retries(self, service: Any) -> None:
        job = service.create()
        post_job(service, {}, f"/{job['id']}/cancel")
        made = [post_job(service, {}, f"/{job['id']}/retry", **{RETRY: retry}).json()["id"] for retry in "0120"]
        assert made[0] == made[1] == made[2] != made[3]

    def test_a_first_try_that_never_arrived(self, service: Any) -> None:
        made = [post_file(service, b"abc", x_stainless_retry_count=retry).json()["id"] for retry in "12"]
        assert len(set(made)) == 1

    def test_a_twin_is_forgotten_after_ten_minutes(self, service: Any) -> None:
        first = post_file(service, b"abc").json()["id"]
        for age_s, same in ((once.TWIN_S - 30, True), (once.TWIN_S + 1, False)):
            with service.ctx.db.transaction() as session:
                session.execute(sa.update(RequestRow).values(created_at=now() - age_s, retries=0))
            assert (post_file(service, b"abc", x_stainless_retry_count="1").json()["id"] == first) is same

    def test_another_key_of_the_project_is_another_client(self, tenants: Any) -> None:
        project = tenants.project()
        made = []
        for retry in ("0", "1"):
            with tenants.http(tenants.key(project)["value"], **{RETRY: retry}) as http:
                made.append(http.post("/v1/files", data={"purpose": "batch"}, files={"file": b"x"}).json()["id"])
        assert made[0] != made[1]

    @BOTH
    def test_retries_without_a_first_try_at_the_same_time(self, start: Callable[..., Any]) -> None:
        """Of one client whose tries come faster than the work is done: each number once."""
        service = start()
        content = b"abc" * 300_000
        calls = [lambda n=n: post_file(service, content, x_stainless_retry_count=str(n)) for n in range(1, 4)]
        ids = [answer.json()["id"] for answer in at_once(calls)]
        # A retry that overtakes one of a lower number is no retry of it, as far as anybody can tell.
        assert count(service, File) == len(set(ids)) == len(stored(service))


class TestWhileTheFirstIsRunning:
    """The first try is played by the test, up to the point that matters."""

    def wanted(self, body: bytes = b"abc") -> Wanted:
        digest = once.digest_of({"sha256": _sha256(body), "filename": "a", "purpose": "batch", "expires_s": None})
        return Wanted(DEFAULT_PROJECT, "", "file", digest, None, 0)

    def begin(self, service: Any) -> Ticket:
        ticket = once.begin(service.ctx, self.wanted())
        assert isinstance(ticket, Ticket)
        return ticket

    def after_a_look(self, service: Any, then: Callable[[], None]) -> Any:
        """The answer to a retry that is waiting when `then` happens."""
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(post_file, service, b"abc", x_stainless_retry_count="1")
            while not _taken(service):
                assert not waiting.done()
            then()
            return waiting.result(60)

    @BOTH
    def test_the_retry_waits_for_its_result(self, start: Callable[..., Any]) -> None:
        service = start()
        made = post_file(service, b"made by the first try").json()["id"]
        ticket = self.begin(service)

        def finish() -> None:
            with service.ctx.db.transaction() as session:
                once.finish(session, ticket, made)

        assert self.after_a_look(service, finish).json()["id"] == made
        assert count(service, File) == 1

    def test_the_retry_tries_itself_when_the_first_failed(self, service: Any) -> None:
        ticket = self.begin(service)
        answer = self.after_a_look(service, lambda: once.give_up(service.ctx, ticket))
        assert answer.status_code == 200
        assert count(service, File) == 1

    @BOTH
    def test_a_first_try_whose_process_died_is_taken_over_and_cannot_come_back(self, start: Callable[..., Any]) -> None:
        service = start()
        ticket = self.begin(service)

        def die() -> None:
            with service.ctx.db.transaction() as session:
                session.execute(sa.update(RequestRow).values(alive_until=now() - 1))

        made = self.after_a_look(service, die).json()["id"]
        with pytest.raises(InProgress), service.ctx.db.transaction() as session:
            once.finish(session, ticket, "file-late")
        assert post_file(service, b"abc", x_stainless_retry_count="2").json()["id"] == made
        assert count(service, File) == 1

    def test_work_that_goes_on_is_kept_alive(self, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("api.once._RENEW_S", 0.01)
        ticket = self.begin(service)

        def alive() -> bool:
            with service.ctx.db.read() as session:
                found: bool = session.scalars(sa.select(RequestRow.alive_until > now() + 1)).one()
                return found

        async def work() -> None:
            with service.ctx.db.transaction() as session:
                session.execute(sa.update(RequestRow).values(alive_until=now() - 1))
            async with kept_alive(service.ctx, ticket), asyncio.timeout(30):
                while not alive():
                    await asyncio.sleep(0.01)

        asyncio.run(work())

    def test_a_first_try_whose_client_has_gone_is_not_begun(self, service: Any) -> None:
        """It comes late, from a queue say; its client has sent the next try by now."""
        form = b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
        form += b'content-disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n--x--\r\n'
        messages = [{"type": "http.request", "body": form, "more_body": False}]
        headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=x")]
        scope = {
            "type": "http", "method": "POST", "path": "/v1/files", "raw_path": b"/v1/files", "query_string": b"",
            "headers": headers, "client": ("127.0.0.1", 1), "server": ("localhost", 80), "scheme": "http",
            "root_path": "", "http_version": "1.1", "asgi": {"version": "3.0"},
        }  # fmt: skip

        async def receive() -> Any:
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        asyncio.run(service.server.config.app(scope, receive, send))
        assert (count(service, File), count(service, RequestRow), stored(service)) == (0, 0, [])

    def test_waiting_has_an_end(self, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("api.once.WAIT_S", 0.3)
        self.begin(service)
        answer = post_file(service, b"abc", x_stainless_retry_count="1")
        assert error_of(answer, 409)["code"] == "request_in_progress"
        assert (answer.headers["x-should-retry"], answer.headers["retry-after"]) == ("true", "5")


class TestLostAnswers:
    """The real client, and a proxy that cuts the answer of each first try after the server has done its work."""

    TIMES, AT_ONCE = 100, 10

    @BOTH
    def test_a_hundred_lost_answers_make_a_hundred_jobs_and_files(self, start: Callable[..., Any]) -> None:
        service = start()
        training_file = service.upload(service.rows()).json()["id"]
        method = service.body()["method"]
        with cutting_proxy(urlsplit(service.url).port or 0) as proxy, ThreadPoolExecutor(self.AT_ONCE) as pool:

            def make(number: int) -> tuple[str, str]:
                with openai.OpenAI(base_url=f"http://127.0.0.1:{proxy.port}/v1", api_key="any") as client:
                    job = client.fine_tuning.jobs.create(model="tiny", training_file=training_file, method=method)
                    file = client.files.create(file=("a", b"%d" % (number % 2)), purpose="batch")
                    return job.id, file.id

            made = list(pool.map(make, range(self.TIMES)))
        assert proxy.cuts == 2 * self.TIMES
        jobs, files = ({pair[index] for pair in made} for index in (0, 1))
        assert (len(jobs), len(files)) == (self.TIMES, self.TIMES), "each client has an object of its own"
        assert (count(service, Job), count(service, File)) == (self.TIMES, self.TIMES + 1)
        assert len(stored(service)) == self.TIMES + 1


def _taken(service: Any) -> bool:
    with service.ctx.db.read() as session:
        return session.scalar(sa.select(RequestRow.id).where(RequestRow.retries == 1)) is not None


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
