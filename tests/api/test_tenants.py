"""Every operation of the OpenAPI description against every wrong key: a new route is in here by itself.

A route with an id must find nothing of another project, and say exactly what it says of an id that does not exist. A
new kind of id has to be given an object below, else its test fails.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from api.auth import PUBLIC
from api.main import create_app
from jobs.db import now
from jobs.ids import (
    AUDIT,
    CHECKPOINT,
    ENDPOINT,
    EVALUATION,
    EXPORT,
    FILE,
    GRADER,
    JOB,
    PERMISSION,
    PROJECT,
    UPLOAD,
    WEBHOOK,
    new_id,
)
from jobs.scopes import SCOPES
from jobs.settings import Settings
from jobs.tenant_tables import ApiKey
from tests.api.tenants import Tenants

METHODS = ("get", "post", "delete", "put", "patch")
OPEN_ID = "model"
"""A path parameter that also names what everybody has: base models."""
UNKNOWN = {
    "file_id": new_id(FILE),
    "upload_id": new_id(UPLOAD),
    "job_id": new_id(JOB),
    "checkpoint_id": new_id(CHECKPOINT),
    "permission_id": new_id(PERMISSION),
    "delivery_id": new_id(WEBHOOK),
    "webhook_endpoint_id": new_id(ENDPOINT),
    "grader_id": new_id(GRADER),
    "evaluation_id": new_id(EVALUATION),
    "export_id": new_id(EXPORT),
    "project_id": new_id(PROJECT),
    "key_id": "key_00000000",
    "audit_id": new_id(AUDIT),
    "path": "model.safetensors",
    "model": "ft:none",
    "name": "none",
}
"""Ids of nothing, of each kind. An operation with another kind of parameter fails the test until it stands here."""


def description() -> dict[str, Any]:
    openapi: dict[str, Any] = create_app(Settings()).openapi()
    return openapi


OPERATIONS = [
    pytest.param(method, path, item[method], id=f"{method} {path}")
    for path, item in description()["paths"].items()
    for method in METHODS
    if method in item
]
CLOSED = [each for each in OPERATIONS if each.values[1] not in PUBLIC]
ADMIN = [each for each in CLOSED if each.values[1].startswith("/v1/organization/")]
OF_PROJECT = [each for each in CLOSED if each not in ADMIN]
WITH_IDS = [each for each in OF_PROJECT if "{" in each.values[1] and "{model}" not in each.values[1]]


def scopes_of(operation: dict[str, Any]) -> list[str]:
    return next(scheme["HTTPBearer"] for scheme in operation["security"] if "HTTPBearer" in scheme)


def url_of(path: str, ids: dict[str, str]) -> str:
    names = re.findall(r"\{(\w+)(?::path)?\}", path)
    unheard = [name for name in names if name not in ids]
    assert not unheard, f"give the tests of tenants an object for {unheard}"
    return re.sub(r"\{(\w+)(?::path)?\}", lambda found: ids[found[1]], path)


def ask(tenants: Tenants, key: str | None, method: str, url: str) -> httpx2.Response:
    """The operation with a body that a JSON object is too little for, at the worst."""
    with tenants.http(key) as http:
        body: dict[str, Any] = {} if method in ("get", "delete") else {"json": {}}
        return http.request(method.upper(), url, **body)


def code_of(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


class TestNobody:
    """No operation answers somebody without a good key."""

    def test_no_key_wrong_expired_revoked_archived(self, tenants: Tenants) -> None:
        project = tenants.project()
        expired, revoked = tenants.key(project), tenants.key(project)
        gone = tenants.project("gone")
        archived = tenants.key(gone)
        with tenants.service.ctx.db.transaction() as session:
            session.execute(sa.update(ApiKey).where(ApiKey.id == expired["id"]).values(expires_at=now() - 1))
        tenants.admin("DELETE", f"projects/{project}/api_keys/{revoked['id']}")
        tenants.admin("POST", f"projects/{gone}/archive")
        good = tenants.key(project)["value"]
        wrong = good[:-8] + ("A" if good[-8] != "A" else "B") + good[-7:]
        cases = [
            (None, "invalid_api_key"),
            ("sk-anything", "invalid_api_key"),
            (wrong, "invalid_api_key"),
            (expired["value"], "api_key_expired"),
            (revoked["value"], "api_key_revoked"),
            (archived["value"], "project_archived"),
        ]
        assert len(CLOSED) > 30
        for each in CLOSED:
            method, path, _ = each.values
            for key, code in cases:
                response = ask(tenants, key, str(method), url_of(str(path), UNKNOWN))
                assert code_of(response) == (401, code), (method, path, response.text)

    def test_a_path_nobody_thought_of_is_closed(self, tenants: Tenants) -> None:
        for url in ("/v1", "/v1/", "/v1/secrets", "/v1/fine_tuning/jobs/x/y/z"):
            assert code_of(ask(tenants, None, "get", url)) == (401, "invalid_api_key")
        assert ask(tenants, None, "get", "/healthz").status_code == 200

    def test_the_body_is_not_looked_at_before_the_key(self, tenants: Tenants) -> None:
        with tenants.http() as http:
            response = http.post("/v1/fine_tuning/jobs", content=b"{", headers={"content-type": "application/json"})
        assert code_of(response) == (401, "invalid_api_key")


class TestDescription:
    """What each operation says of itself."""

    @pytest.mark.parametrize(("method", "path", "operation"), CLOSED)
    def test_each_operation_names_its_scope_or_is_for_administrators(
        self, method: str, path: str, operation: dict[str, Any]
    ) -> None:
        schemes = {name for scheme in operation["security"] for name in scheme}
        if path.startswith("/v1/organization/"):
            assert schemes == {"AdminKey"}
            return
        scopes = scopes_of(operation)
        assert scopes, "name the scope: project: Annotated[str, needs(...)]"
        assert set(scopes) <= set(SCOPES)
        if method != "get":
            assert not any(scope.endswith(":read") for scope in scopes), "what writes needs more than reading"

    def test_the_public_ones_are_few(self) -> None:
        found = {str(each.values[1]) for each in OPERATIONS if "security" not in each.values[2]}  # type: ignore[operator]
        assert found <= set(PUBLIC)


class TestScopes:
    """A key does what its scopes say and nothing else."""

    def test_a_key_without_the_scope_is_refused_by_name(self, tenants: Tenants) -> None:
        project = tenants.project()
        lacking = {
            scope: tenants.key(project, *(other for other in SCOPES if not _implies(other, scope)))["value"]
            for scope in SCOPES
        }
        for each in OF_PROJECT:
            method, path, operation = each.values
            for scope in scopes_of(operation):  # type: ignore[arg-type]
                response = ask(tenants, lacking[scope], str(method), url_of(str(path), UNKNOWN))
                assert code_of(response) == (403, "insufficient_permissions"), (method, path, response.text)
                assert scope in response.json()["error"]["message"]

    def test_a_key_with_only_the_scope_passes(self, tenants: Tenants) -> None:
        project = tenants.project()
        only = {scope: tenants.key(project, scope)["value"] for scope in SCOPES}
        for each in OF_PROJECT:
            method, path, operation = each.values
            (scope,) = scopes_of(operation)  # type: ignore[arg-type]
            response = ask(tenants, only[scope], str(method), url_of(str(path), UNKNOWN))
            assert response.status_code in (200, 400, 404, 415), (method, path, response.text)

    def test_a_key_from_before_a_scope_may_what_its_own_imply(self, tenants: Tenants) -> None:
        key = tenants.key(tenants.project(), "graders:write")
        with tenants.service.ctx.db.transaction() as session:
            session.execute(sa.update(ApiKey).where(ApiKey.id == key["id"]).values(scopes=["graders:write"]))
        with tenants.http(key["value"]) as http:
            assert http.get("/v1/fine_tuning/graders").status_code == 200
            assert http.post("/v1/fine_tuning/graders/run", json={}).status_code == 400
            assert http.get("/v1/fine_tuning/jobs").status_code == 403

    def test_reading_and_running_graders_needs_no_writing(self, tenants: Tenants) -> None:
        project = tenants.project()
        reads, runs = (tenants.key(project, scope)["value"] for scope in ("graders:read", "graders:run"))
        grader = tenants.service.body()["method"]["reinforcement"]["grader"]
        graders, sample = "/v1/fine_tuning/graders", {"model_sample": "4", "item": {"answer": "4"}}
        with tenants.http(runs) as http:
            assert http.post(f"{graders}/run", json={"grader": grader} | sample).json()["reward"] == 1
            assert http.post(f"{graders}/validate", json={"grader": grader}).status_code == 200
            for path in ("", "/run_batch"):
                body = {"grader": grader, "samples": [sample]} if path else {"name": "g", "grader": grader}
                assert http.post(graders + path, json=body).status_code == (200 if path else 403)
            assert http.get(graders).status_code == 403
        with tenants.http(reads) as http:
            assert http.get(graders).status_code == 200
            assert http.post(f"{graders}/run", json={"grader": grader} | sample).status_code == 403

    def test_administrators_and_projects_are_apart(self, tenants: Tenants) -> None:
        key = tenants.key(tenants.project())["value"]
        for each in ADMIN:
            method, path, _ = each.values
            response = ask(tenants, key, str(method), url_of(str(path), UNKNOWN))
            assert code_of(response) == (403, "insufficient_permissions"), (method, path)
        for each in OF_PROJECT:
            method, path, operation = each.values
            if any("AdminKey" in scheme for scheme in operation["security"]):  # type: ignore[index]
                continue
            response = ask(tenants, tenants.admin_key, str(method), url_of(str(path), UNKNOWN))
            assert code_of(response) == (403, "insufficient_permissions"), (method, path)


class TestForeignIds:
    """Another project's object is not there."""

    @pytest.fixture
    def owned(self, tenants: Tenants, tmp_path: Path) -> tuple[str, dict[str, str]]:
        """A project's key, and one object of each kind it has."""
        key = tenants.key(tenants.project("owner"))["value"]
        job_id = tenants.job(key)
        checkpoint_id = tenants.checkpoint(job_id, tmp_path / "checkpoint")
        other = tenants.project("friend")
        with tenants.http(key) as http:
            url = f"/v1/fine_tuning/checkpoints/{checkpoint_id}/permissions"
            permission = http.post(url, json={"project_ids": [other]}).json()["data"][0]["id"]
            announced = {"bytes": 1, "filename": "x", "mime_type": "text/plain", "purpose": "batch"}
            upload_id = http.post("/v1/uploads", json=announced).json()["id"]
            hook = {"name": "h", "url": "https://x.example/", "event_types": ["fine_tuning.job.failed"]}
            endpoint_id = http.post("/v1/webhook_endpoints", json=hook).json()["id"]
            url = f"/v1/fine_tuning/checkpoints/{checkpoint_id}"
            evaluated = http.post(f"{url}/evaluate", json={"file": tenants.upload(key)}).json()["id"]
            exported = http.post(f"{url}/export").json()["id"]
        for task_id in (evaluated, exported):
            tenants.result(task_id, tmp_path / "result")
        ids = {
            "file_id": tenants.upload(key),
            "upload_id": upload_id,
            "job_id": job_id,
            "checkpoint_id": checkpoint_id,
            "permission_id": permission,
            "webhook_endpoint_id": endpoint_id,
            "evaluation_id": evaluated,
            "export_id": exported,
        }
        return key, UNKNOWN | ids

    def test_a_foreign_id_is_answered_as_an_unknown_one(
        self, tenants: Tenants, owned: tuple[str, dict[str, str]]
    ) -> None:
        _, ids = owned
        stranger = tenants.key(tenants.project("stranger"))["value"]
        assert len(WITH_IDS) > 20
        for each in WITH_IDS:
            method, path, operation = (each.values[0], str(each.values[1]), each.values[2])
            body = _body(operation, tenants)  # type: ignore[arg-type]
            with tenants.http(stranger) as http:
                asked = [http.request(str(method).upper(), url_of(path, of), **body) for of in (ids, UNKNOWN)]
            foreign, unknown = (_without(response, of) for response, of in zip(asked, (ids, UNKNOWN), strict=True))
            assert foreign == unknown, (method, path)
            assert asked[0].status_code == 404, (method, path, asked[0].text)

    def test_the_owner_does_find_them(self, tenants: Tenants, owned: tuple[str, dict[str, str]]) -> None:
        """The test above can fail: the same paths answer the owner."""
        key, ids = owned
        found = []
        for each in WITH_IDS:
            method, path, _ = each.values
            apart = ("stream", "wait", "delivery_id", "grader_id")
            if method == "get" and not any(name in str(path) for name in apart):
                response = ask(tenants, key, "get", url_of(str(path), ids))
                assert response.status_code == 200, (path, response.text)
                found.append(path)
        assert len(found) > 8

    def test_lists_hold_nothing_of_others(self, tenants: Tenants, owned: tuple[str, dict[str, str]]) -> None:
        stranger = tenants.key(tenants.project("stranger"))["value"]
        for each in OF_PROJECT:
            method, path, _ = each.values
            if method == "get" and "{" not in str(path):
                text = ask(tenants, stranger, "get", str(path)).text
                assert not [one for one in owned[1].values() if one not in UNKNOWN.values() and one in text], path


def _implies(one: str, other: str) -> bool:
    return other in (one, one.replace(":write", ":read")) or (one, other) == ("graders:write", "graders:run")


def _without(response: httpx2.Response, ids: dict[str, str]) -> tuple[int, str]:
    """The answer with its ids taken out."""
    text = response.text
    for name, value in ids.items():
        text = text.replace(value, f"<{name}>")
    return response.status_code, text


def _body(operation: dict[str, Any], tenants: Tenants) -> dict[str, Any]:
    """A body that is right, for operations that need one."""
    if "requestBody" not in operation:
        return {}
    name = str(operation["operationId"])
    if "permission" in name:
        return {"json": {"project_ids": [tenants.project("x")]}}
    if name.startswith("complete_upload"):
        return {"json": {"part_ids": ["part_0"]}}
    if name.startswith("update_checkpoint"):
        return {"json": {"pinned": True}}
    if name.startswith("test_webhook_endpoint"):
        return {"json": {"event_type": "fine_tuning.job.failed"}}
    if name.startswith("create_grader_version"):
        grader = {"type": "string_check", "name": "g", "operation": "eq", "input": "a", "reference": "a"}
        return {"json": {"grader": grader}}
    return {"json": {}}
