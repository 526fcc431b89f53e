"""Stored graders: versions that stay, pages, and references in jobs and runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.ids import GRADER, new_id
from jobs.tables import GraderVersion, Job, StoredGrader
from tests.service import Service

URL = "/v1/fine_tuning/graders"
SAME = {
    "type": "string_check", "name": "same", "operation": "eq",
    "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
}  # fmt: skip
LIKE = SAME | {"operation": "like"}


@pytest.fixture
def shelf(start_service: Callable[..., Service], database_url: str) -> Service:
    """A service on each kind of database."""
    return start_service(database_url=database_url)


def call(service: Service, method: str, path: str = "", body: Any = None, **params: Any) -> tuple[int, Any]:
    with service.http() as http:
        response = http.request(method, URL + path, json=body, params=params)
    return response.status_code, response.json()


def store(service: Service, grader: Any = SAME, name: str = "mine") -> str:
    status, made = call(service, "POST", "", {"name": name, "grader": grader})
    assert status == 200, made
    return str(made["id"])


def reference(grader_id: str, **fields: Any) -> dict[str, Any]:
    return {"type": "grader_ref", "id": grader_id} | fields


def test_versions(shelf: Service) -> None:
    status, first = call(shelf, "POST", "", {"name": "mine", "grader": SAME})
    assert (status, set(first)) == (200, {"id", "object", "name", "created_at", "version", "grader"})
    assert (first["object"], first["name"], first["version"], first["grader"]) == ("grader", "mine", 1, SAME)
    path = f"/{first['id']}"
    assert call(shelf, "POST", f"{path}/versions", {"grader": LIKE})[1]["version"] == 2
    assert call(shelf, "GET", path)[1]["grader"] == LIKE
    assert call(shelf, "GET", path, version=1)[1] == first
    listed = call(shelf, "GET", f"{path}/versions", limit=1)[1]
    assert ([one["version"] for one in listed["data"]], listed["has_more"]) == ([2], True)
    listed = call(shelf, "GET", f"{path}/versions", limit=1, after=2)[1]
    assert ([one["version"] for one in listed["data"]], listed["has_more"]) == ([1], False)
    for wrong in (3, 1 << 70):
        assert call(shelf, "GET", path, version=wrong)[1]["error"]["param"] == "version"
    assert call(shelf, "DELETE", path) == (200, {"id": first["id"], "object": "grader", "deleted": True})
    for method in ("GET", "DELETE"):
        assert call(shelf, method, path)[0] == 404
    with shelf.ctx.db.read() as session:
        assert not list(session.scalars(sa.select(GraderVersion)))


def test_pages_newest_first(shelf: Service) -> None:
    made = [store(shelf, name=str(number)) for number in range(5)]
    call(shelf, "POST", f"/{made[0]}/versions", {"grader": LIKE})
    found: list[dict[str, Any]] = []
    params: dict[str, Any] = {"limit": 2}
    while True:
        page = call(shelf, "GET", **params)[1]
        found += page["data"]
        if not page["has_more"]:
            break
        params["after"] = page["last_id"]
    assert [one["id"] for one in found] == made[::-1]
    assert [one["version"] for one in found] == [1, 1, 1, 1, 2]
    assert call(shelf, "GET", after="grader-none")[1]["error"]["param"] == "after"


def test_another_projects_grader_is_not_there(shelf: Service) -> None:
    grader_id = store(shelf)
    with shelf.ctx.db.transaction() as session:
        session.execute(sa.update(StoredGrader).values(project_id="another"))
    for method, path, body in (
        ("GET", "", None),
        ("DELETE", "", None),
        ("GET", "/versions", None),
        ("POST", "/versions", {"grader": LIKE}),
    ):
        unknown = call(shelf, method, f"/{new_id(GRADER)}{path}", body)
        foreign = call(shelf, method, f"/{grader_id}{path}", body)
        assert (unknown[0], foreign[0], foreign[1]["error"]["code"]) == (404, 404, "not_found")
    assert call(shelf, "GET")[1]["data"] == []
    body = {"grader": reference(grader_id), "model_sample": "4"}
    status, answer = call(shelf, "POST", "/run", body)
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, "grader.id", "grader_not_found")


@pytest.mark.parametrize("odd", ["grader-%00", "grader-x", "run", "%ED%A0%80"])
def test_ids_that_cannot_be(shelf: Service, odd: str) -> None:
    assert call(shelf, "GET", f"/{odd}")[0] == 404
    assert call(shelf, "POST", f"/{odd}/versions", {"grader": SAME})[0] == 404


@pytest.mark.parametrize(
    ("grader", "param"),
    [
        (reference("grader-1"), "grader.type"),
        (
            {"type": "multi", "name": "m", "graders": {"a": SAME, "b": reference("grader-1")}, "calculate_output": "a"},
            "grader.graders.b.type",
        ),
        (SAME | {"operation": "neq"}, "grader.operation"),
    ],
)
def test_what_cannot_be_stored(shelf: Service, grader: Any, param: str) -> None:
    grader_id = store(shelf)
    for path, body in (("", {"name": "x", "grader": grader}), (f"/{grader_id}/versions", {"grader": grader})):
        status, answer = call(shelf, "POST", path, body)
        assert (status, answer["error"]["param"]) == (400, param)
    assert call(shelf, "GET", f"/{grader_id}")[1]["version"] == 1


def test_references_in_runs(shelf: Service) -> None:
    grader_id = store(shelf)
    call(shelf, "POST", f"/{grader_id}/versions", {"grader": LIKE})
    sample = {"model_sample": "it is 44", "item": {"answer": "4"}}
    for version, reward in ((1, 0.0), (2, 1.0), (None, 1.0)):
        answer = call(shelf, "POST", "/run", {"grader": reference(grader_id, version=version)} | sample)[1]
        assert (answer["reward"], answer["metadata"]["name"]) == (reward, "same")
    graders = {"a": reference(grader_id), "b": SAME}
    multi = {"type": "multi", "name": "m", "graders": graders, "calculate_output": "2 * a + b"}
    assert call(shelf, "POST", "/run", {"grader": multi} | sample)[1]["reward"] == 2.0
    shown = call(shelf, "POST", "/validate", {"grader": multi})[1]["grader"]
    assert shown["graders"] == {"a": reference(grader_id, version=2), "b": SAME}
    nested = store(shelf, multi | {"graders": {"a": SAME, "b": SAME}})
    error = call(shelf, "POST", "/run", {"grader": multi | {"graders": {"a": reference(nested), "b": SAME}}} | sample)
    assert error[1]["error"]["param"] == "grader.graders.a.id"
    error = call(shelf, "POST", "/run", {"grader": reference(grader_id, version=9)} | sample)
    assert error[1]["error"]["param"] == "grader.version"


def method_with(service: Service, grader: Any) -> dict[str, Any]:
    method: dict[str, Any] = service.body()["method"]
    method["reinforcement"]["grader"] = grader
    return method


def test_a_job_keeps_the_definition(shelf: Service) -> None:
    grader_id = store(shelf)
    job = shelf.create(method=method_with(shelf, reference(grader_id)))
    assert job["method"]["reinforcement"]["grader"] == reference(grader_id, version=1)
    call(shelf, "POST", f"/{grader_id}/versions", {"grader": LIKE})
    with shelf.http() as http:
        other = http.post(f"/v1/fine_tuning/jobs/{job['id']}/clone").json()
        assert other["method"]["reinforcement"]["grader"] == reference(grader_id, version=2)
        call(shelf, "DELETE", f"/{grader_id}")
        assert http.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["method"] == job["method"]
        refused = http.post(f"/v1/fine_tuning/jobs/{job['id']}/clone").json()["error"]
    assert (refused["param"], refused["code"]) == ("method.reinforcement.grader.id", "grader_not_found")
    with shelf.ctx.db.read() as session:
        recipes = {row.id: row.recipe for row in session.scalars(sa.select(Job))}
    assert recipes[job["id"]]["method"]["grader"] == SAME
    assert recipes[other["id"]]["method"]["grader"] == LIKE
