"""Status polls answered from kept answers: always what the application would say, for everyone and after anything."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from api.poll import Answer, Polls
from jobs.db import Database
from jobs.ids import JOB, new_id
from jobs.repositories.polls import FROZEN
from jobs.tables import Job
from tests.service import Service

URL = "/v1/fine_tuning/jobs"
OWN_HEADERS = {"x-request-id", "openai-processing-ms", "date"}
"""Of each response, whatever it answers."""
OTHER_VALUES: dict[str, Any] = {"state": "paused", "desired": "pause", "priority": 1}


@pytest.fixture
def running(start_service: Callable[..., Service], database_url: str) -> tuple[Service, str]:
    """A service on each database with a job a worker has."""
    service = start_service(database_url=database_url)
    job_id: str = service.create()["id"]
    service.claim(job_id)
    return service, job_id


def put(service: Service, job_id: str, **values: Any) -> None:
    with service.ctx.db.transaction() as session:
        session.execute(sa.update(Job.__table__).where(Job.id == job_id).values(**values))  # type: ignore[arg-type]


def poll(service: Service, job_id: str) -> httpx2.Response:
    with service.http() as http:
        return http.get(f"{URL}/{job_id}")


def listed(service: Service) -> dict[str, Any]:
    """The newest job as a list shows it: the application's word."""
    with service.http() as http:
        job: dict[str, Any] = http.get(URL, params={"limit": 1}).json()["data"][0]
    return job


def test_the_same_answer_again(running: tuple[Service, str]) -> None:
    service, job_id = running
    first, second = poll(service, job_id), poll(service, job_id)
    assert second.content == first.content
    assert [item for item in second.headers.raw if item[0].decode().lower() not in OWN_HEADERS] == [
        item for item in first.headers.raw if item[0].decode().lower() not in OWN_HEADERS
    ]
    assert second.headers["x-request-id"] != first.headers["x-request-id"]
    assert first.json() == listed(service)
    put(service, job_id, model="only the application would see this")
    assert poll(service, job_id).content == first.content


def test_a_change_of_any_column_shows(running: tuple[Service, str]) -> None:
    """Also of columns this test has never heard of."""
    service, job_id = running
    kinds: dict[type, Any] = {str: "other", int: 7, float: 1234567890.5, bool: True}
    columns = [column for column in Job.__table__.columns if column.name not in FROZEN | {"id", "project_id"}]
    assert {"state", "phase", "last_step", "error_message", "pause_code"} <= {column.name for column in columns}
    for column in columns:
        shown = poll(service, job_id).json()
        assert poll(service, job_id).json() == shown
        value = OTHER_VALUES.get(column.name, kinds.get(column.type.python_type))
        put(service, job_id, **{column.name: value})
        assert poll(service, job_id).json() == listed(service), column.name


def test_the_frozen_columns_are_columns() -> None:
    assert {column.name for column in Job.__table__.columns} > FROZEN


def test_a_queued_job_is_looked_at_each_time(running: tuple[Service, str]) -> None:
    service, _ = running
    first, second = service.create()["id"], service.create()["id"]
    places = [poll(service, second).json()["rl"]["queue_position"] for _ in range(2)]
    with service.http() as http:
        http.post(f"{URL}/{first}/cancel")
    places.append(poll(service, second).json()["rl"]["queue_position"])
    assert places[0] == places[1] == places[2] + 1


def test_the_key_is_asked_for_each_time(start_service: Callable[..., Service]) -> None:
    service = start_service(api_key="sk-right")
    right = {"Authorization": "Bearer sk-right"}
    with service.http(headers=right) as http:
        file = {"file": ("train.jsonl", service.rows())}
        file_id = http.post("/v1/files", data={"purpose": "fine-tune"}, files=file).json()["id"]
        job_id = http.post(URL, json=service.body(training_file=file_id)).json()["id"]
        service.claim(job_id)
        for _ in range(2):
            assert http.get(f"{URL}/{job_id}").status_code == 200
    for headers in ({}, {"Authorization": "Bearer sk-wrong"}):
        with service.http(headers=headers) as http:
            response = http.get(f"{URL}/{job_id}")
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")


def test_a_page_of_another_site_gets_nothing(running: tuple[Service, str]) -> None:
    service, job_id = running
    poll(service, job_id)
    with service.http(headers={"Origin": "https://example.com"}) as http:
        assert http.get(f"{URL}/{job_id}").status_code == 403
    with service.http(headers={"Host": "rebound.example.com"}) as http:
        assert http.get(f"{URL}/{job_id}").status_code == 403


def test_a_job_of_another_project_is_not_found(running: tuple[Service, str]) -> None:
    service, job_id = running
    unheard = poll(service, new_id(JOB))
    assert poll(service, job_id).status_code == 200
    put(service, job_id, project_id="proj_other")
    for _ in range(2):
        found = poll(service, job_id)
        assert found.status_code == unheard.status_code == 404
        assert found.json()["error"]["code"] == unheard.json()["error"]["code"]
        assert job_id in found.json()["error"]["message"]


def test_many_at_once_get_each_their_own_job(running: tuple[Service, str]) -> None:
    service, job_id = running
    ids = [job_id, *(service.create()["id"] for _ in range(4))]
    for other in ids[1:]:
        service.claim(other)
    wrong: list[str] = []

    def ask(number: int) -> None:
        with service.http() as http:
            for turn in range(20):
                wanted = ids[(number + turn) % len(ids)]
                response = http.get(f"{URL}/{wanted}")
                if response.status_code != 200 or response.json()["id"] != wanted:
                    wrong.append(response.text)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_one_answer_is_made_for_all_who_wait(db: Database, kept: bool) -> None:
    version, job_id = ("a row",), new_id(JOB)

    async def ask() -> list[bytes | None]:
        polls = Polls(db)
        with polls.making(job_id, version):
            waiting = [asyncio.create_task(polls.answer(job_id, version)) for _ in range(3)]
            await asyncio.sleep(0)
            assert not any(task.done() for task in waiting)
            assert await polls.answer(job_id, ("another row",)) is None
            if kept:
                polls.keep(job_id, Answer(version, (), b"shown"))
        answers = await asyncio.gather(*waiting)
        polls.close()
        return [answer and answer.body for answer in answers]

    assert asyncio.run(ask()) == [b"shown" if kept else None] * 3


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_lost_connections_are_made_again(running: tuple[Service, str]) -> None:
    service, job_id = running
    poll(service, job_id)
    for _ in range(2):
        with service.ctx.db.engine.connect() as connection:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            connection.execute(sa.text(f"{others} AND datname = current_database()"))
        assert poll(service, job_id).status_code == 200
    shown = poll(service, job_id)
    put(service, job_id, model="only the application would see this")
    assert poll(service, job_id).content == shown.content
