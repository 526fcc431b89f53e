"""/v1/fine_tuning/secrets: write-only, encrypted, kept while a job needs them."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.tables import Event, Job, Secret
from tests.service import Service

URL = "/v1/fine_tuning/secrets"
KEY = base64.b64encode(b"k" * 32).decode()
VALUE = "sk-live-0123456789abcdef"
GRADER = {
    "type": "endpoint", "name": "e", "url": "https://grader.example.com/score",
    "headers": {"Authorization": "Bearer {{ secret.TOKEN }}", "X-Team": "red"},
}  # fmt: skip


@pytest.fixture
def keeper(start_service: Callable[..., Service], database_url: str) -> Service:
    """A service with a key of its own, on each kind of database."""
    return start_service(database_url=database_url, secrets_key=KEY, api_key="key")


def call(service: Service, method: str, path: str = "", *, key: str = "key", json: Any = None) -> tuple[int, Any]:
    with service.http(headers={"authorization": f"Bearer {key}"}) as http:
        response = http.request(method, URL + path, json=json)
    return response.status_code, response.json()


def test_without_a_key(keeper: Service) -> None:
    for method, path, json in (("GET", "", None), ("POST", "", {"name": "A", "value": "b"}), ("DELETE", "/A", None)):
        assert call(keeper, method, path, key="wrong", json=json)[0] == 401


def test_set_list_replace_delete(keeper: Service) -> None:
    status, made = call(keeper, "POST", json={"name": "TOKEN", "value": VALUE})
    assert (status, set(made)) == (200, {"object", "name", "created_at", "updated_at"})
    assert call(keeper, "POST", json={"name": "ALSO", "value": "x"})[0] == 200
    assert call(keeper, "POST", json={"name": "TOKEN", "value": "another"})[1]["created_at"] == made["created_at"]
    listed = call(keeper, "GET")[1]
    assert [entry["name"] for entry in listed["data"]] == ["ALSO", "TOKEN"]
    assert VALUE not in str(listed)
    assert call(keeper, "DELETE", "/TOKEN") == (200, {"name": "TOKEN", "object": "secret", "deleted": True})
    assert call(keeper, "DELETE", "/TOKEN")[1]["error"]["param"] == "name"
    assert [entry["name"] for entry in call(keeper, "GET")[1]["data"]] == ["ALSO"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "TOKEN"}, "value"),
        ({"name": "no spaces", "value": VALUE}, "name"),
        ({"name": "TOKEN", "value": ""}, "value"),
        ({"name": "TOKEN", "value": VALUE + "\r\nX-Injected: 1"}, "value"),
        ({"name": "TOKEN", "value": VALUE + "\u00e9"}, "value"),
        ({"name": "TOKEN", "value": VALUE * 400}, "value"),
        ({"name": "TOKEN", "value": [VALUE]}, "value"),
        ({"name": "TOKEN", "value": VALUE, "more": 1}, "more"),
    ],
)
def test_faults_do_not_repeat_the_value(keeper: Service, body: dict[str, Any], param: str) -> None:
    status, answer = call(keeper, "POST", json=body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert VALUE not in str(answer)


@pytest.mark.parametrize("name", ["%00", "%ED%A0%80", "x" * 300, "no such"])
def test_names_that_cannot_be(keeper: Service, name: str) -> None:
    assert call(keeper, "DELETE", f"/{name}")[0] == 404


def test_the_value_is_nowhere(
    start_service: Callable[..., Service], tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    service = start_service()
    with service.http() as http:
        assert http.post(URL, json={"name": "TOKEN", "value": VALUE}).status_code == 200
        body = service.body(training_file=service.upload(service.rows()).json()["id"])
        body["method"]["reinforcement"]["grader"] = GRADER
        http.post("/v1/fine_tuning/jobs", json=body)
        http.post("/v1/fine_tuning/graders/run", json={"grader": GRADER, "model_sample": "4"})
    home = tmp_path / "home"
    stored = [path for path in home.rglob("*") if path.is_file()]
    assert {"bgpo.db", "secrets_key"} <= {path.name for path in stored}
    for path in stored:
        assert VALUE.encode() not in path.read_bytes(), path
    out, err = capfd.readouterr()
    assert VALUE not in out + err + caplog.text
    assert "secret set" in out + err + caplog.text
    assert (home / "secrets_key").stat().st_mode & 0o777 == 0o600


def test_a_secret_is_kept_while_a_job_needs_it(keeper: Service) -> None:
    call(keeper, "POST", json={"name": "TOKEN", "value": VALUE})
    recipe = {"method": {"type": "reinforcement", "grader": GRADER}}
    with keeper.http(headers={"authorization": "Bearer key"}) as http:
        train = {"purpose": "fine-tune"}, {"file": ("t.jsonl", keeper.rows())}
        file_id = http.post("/v1/files", data=train[0], files=train[1]).json()["id"]
        job = http.post("/v1/fine_tuning/jobs", json=keeper.body(training_file=file_id)).json()
        assert call(keeper, "DELETE", "/TOKEN")[0] == 200  # that job does not need it
        call(keeper, "POST", json={"name": "TOKEN", "value": VALUE})
        with keeper.ctx.db.transaction() as session:
            session.execute(sa.update(Job).where(Job.id == job["id"]).values(recipe=recipe))
        status, answer = call(keeper, "DELETE", "/TOKEN")
        assert (status, answer["error"]["code"]) == (400, "secret_in_use")
        assert job["id"] in answer["error"]["message"]
        assert [entry["name"] for entry in call(keeper, "GET")[1]["data"]] == ["TOKEN"]
        http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    assert call(keeper, "DELETE", "/TOKEN")[0] == 200
    # A retry would need it again.
    with keeper.http(headers={"authorization": "Bearer key"}) as http:
        refused = http.post(f"/v1/fine_tuning/jobs/{job['id']}/retry").json()["error"]
    assert (refused["code"], "TOKEN" in refused["message"]) == ("missing_secret", True)


def test_rows_hold_ciphertext(keeper: Service) -> None:
    call(keeper, "POST", json={"name": "TOKEN", "value": VALUE})
    with keeper.ctx.db.read() as session:
        (row,) = session.scalars(sa.select(Secret))
        assert VALUE not in str(vars(row))
        assert VALUE.encode() not in base64.b64decode(row.ciphertext)
        assert not list(session.scalars(sa.select(Event)))


def test_an_installation_without_a_key_keeps_none(
    start_service: Callable[..., Service], shared_postgres_database: str
) -> None:
    service = start_service(database_url=shared_postgres_database, api_key="key")
    status, answer = call(service, "POST", json={"name": "A", "value": "b"})
    assert (status, answer["error"]["code"]) == (400, "secrets_unavailable")
