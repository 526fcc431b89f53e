"""Keys over HTTP: shown once, expiring, rotated, revoked, those of the settings; headers; too many wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest
import sqlalchemy as sa

from jobs.tables import DEFAULT_ORGANIZATION, DEFAULT_PROJECT, Base
from jobs.tenant_tables import ApiKey
from tests.api.tenants import Tenants
from tests.service import Service

Make = Callable[..., Tenants]


def status(tenants: Tenants, key: str | None, **headers: str) -> tuple[int, str | None]:
    with tenants.http(key, **headers) as http:
        response = http.get("/v1/fine_tuning/jobs")
    return response.status_code, response.json().get("error", {}).get("code")


class TestLife:
    def test_a_key_is_shown_once_and_stored_nowhere(self, tenants: Tenants) -> None:
        project = tenants.project()
        made = tenants.key(project, "read_only", name="mine", expires_in_seconds=3600)
        assert made["object"] == "organization.project.api_key"
        assert made["scopes"] == ["files:read", "jobs:read", "models:read", "graders:read"]
        assert made["expires_at"] == pytest.approx(made["created_at"] + 3600, abs=1)
        assert status(tenants, made["value"]) == (200, None)
        shown = tenants.admin("GET", f"projects/{project}/api_keys/{made['id']}")
        assert shown["last_used_at"] is not None
        assert {**shown, "last_used_at": None} == {name: made[name] for name in made if name != "value"}
        assert tenants.admin("GET", f"projects/{project}/api_keys")["data"] == [shown]
        with tenants.service.ctx.db.read() as session:
            for table in Base.metadata.sorted_tables:
                assert made["value"][19:51] not in str(session.execute(sa.select(table)).all())

    def test_rotation_has_an_overlap(self, tenants: Tenants) -> None:
        project = tenants.project()
        old = tenants.key(project, "jobs:read", name="worker")
        url = f"projects/{project}/api_keys/{old['id']}"
        new = tenants.admin("POST", f"{url}/rotate", json={"overlap_seconds": 1000})
        assert (new["name"], new["scopes"], new["expires_at"]) == ("worker", ["jobs:read"], None)
        assert status(tenants, old["value"]) == status(tenants, new["value"]) == (200, None)
        left = tenants.admin("GET", url)["expires_at"] - new["created_at"]
        assert left == pytest.approx(1000, abs=2)
        newest = tenants.admin("POST", f"projects/{project}/api_keys/{new['id']}/rotate")
        assert status(tenants, new["value"]) == (401, "api_key_expired")
        assert status(tenants, newest["value"]) == (200, None)

    def test_what_is_revoked_is_refused_listed_no_more_and_not_rotated(self, tenants: Tenants) -> None:
        project = tenants.project()
        made = tenants.key(project)
        url = f"projects/{project}/api_keys/{made['id']}"
        assert tenants.admin("DELETE", url) == {
            "id": made["id"],
            "object": "organization.project.api_key.deleted",
            "deleted": True,
        }
        assert status(tenants, made["value"]) == (401, "api_key_revoked")
        assert tenants.admin("GET", f"projects/{project}/api_keys")["data"] == []
        assert tenants.admin("GET", url)["revoked_at"] is not None
        assert tenants.admin("POST", f"{url}/rotate", 400)["error"]["code"] == "key_revoked"

    def test_a_revoked_key_may_live_for_as_long_as_it_is_remembered(self, make_tenants: Make) -> None:
        tenants = make_tenants(key_cache_s=3600)
        project = tenants.project()
        made, unused = tenants.key(project), tenants.key(project)
        assert status(tenants, made["value"]) == (200, None)
        for key in (made, unused):
            tenants.admin("DELETE", f"projects/{project}/api_keys/{key['id']}")
        assert status(tenants, made["value"]) == (200, None)
        assert status(tenants, unused["value"]) == (401, "api_key_revoked")
        guess = made["value"][:-8] + "0000" + made["value"][-4:]
        assert status(tenants, guess) == (401, "invalid_api_key")

    def test_expiry_is_seen_while_a_key_is_remembered(self, make_tenants: Make) -> None:
        tenants = make_tenants(key_cache_s=3600)
        project = tenants.project()
        made = tenants.key(project, expires_in_seconds=1)
        with tenants.service.ctx.db.transaction() as session:  # so near that it passes between two requests
            session.execute(sa.update(ApiKey).values(expires_at=ApiKey.expires_at + 1))
        found = {status(tenants, made["value"])}
        while (401, "api_key_expired") not in found:  # the test's own time limit ends it
            found.add(status(tenants, made["value"]))
        assert found == {(200, None), (401, "api_key_expired")}

    def test_on_postgresql_as_well(self, make_tenants: Make, new_postgres_database: Callable[[], str]) -> None:
        tenants = make_tenants(database_url=new_postgres_database())
        project = tenants.project("one", files=3)
        made = tenants.key(project, expires_in_seconds=3600)
        assert status(tenants, made["value"]) == (200, None)
        new = tenants.admin("POST", f"projects/{project}/api_keys/{made['id']}/rotate")
        assert status(tenants, made["value"]) == (401, "api_key_expired")
        tenants.admin("POST", f"projects/{project}/archive")
        assert status(tenants, new["value"]) == (401, "project_archived")


class TestAdministrators:
    def test_their_keys_make_and_revoke_each_other(self, tenants: Tenants) -> None:
        made = tenants.admin("POST", "admin_api_keys", json={"name": "second"})
        assert (made["object"], made["owner"]["role"]) == ("organization.admin_api_key", "owner")
        assert [each["name"] for each in tenants.admin("GET", "admin_api_keys")["data"]] == ["second", "root"]
        second = Tenants(tenants.service, made["value"])
        new = second.admin("POST", f"admin_api_keys/{made['id']}/rotate")
        assert second.admin("GET", "projects", 401)["error"]["code"] == "api_key_expired"
        tenants.admin("DELETE", f"admin_api_keys/{new['id']}")
        assert (
            Tenants(tenants.service, new["value"]).admin("GET", "projects", 401)["error"]["code"] == "api_key_revoked"
        )

    def test_projects(self, tenants: Tenants) -> None:
        first, second = tenants.project("first"), tenants.project("second")
        assert tenants.admin("POST", f"projects/{first}", json={"name": "renamed"})["name"] == "renamed"
        tenants.admin("POST", f"projects/{first}/archive")
        again = tenants.admin("POST", f"projects/{first}/archive")
        assert (again["status"], again["object"]) == ("archived", "organization.project")
        listed = tenants.admin("GET", "projects")["data"]
        assert [each["id"] for each in listed] == [second, DEFAULT_PROJECT]
        page = tenants.admin("GET", "projects", params={"include_archived": True, "limit": 1, "after": second})
        assert ([each["id"] for each in page["data"]], page["has_more"]) == ([first], True)
        assert tenants.admin("POST", f"projects/{DEFAULT_PROJECT}/archive", 400)["error"]["param"] == "project_id"
        body = {"name": "k"}
        assert "archived" in tenants.admin("POST", f"projects/{first}/api_keys", 400, json=body)["error"]["message"]
        for name in ("", "a\nb", "x" * 129, None):
            assert tenants.admin("POST", "projects", 400, json={"name": name})["error"]["param"] == "name"
        for scopes in ([], ["jobs"], ["admin"]):
            tenants.admin("POST", f"projects/{second}/api_keys", 400, json={"name": "k", "scopes": scopes})

    def test_the_openai_client_administers(self, tenants: Tenants) -> None:
        url = f"{tenants.service.url}/v1"
        with openai.OpenAI(base_url=url, admin_api_key=tenants.admin_key, api_key="unused", max_retries=0) as client:
            organization = client.admin.organization
            project = organization.projects.create(name="by the client")
            assert project.status == "active"
            assert [each.id for each in organization.projects.list(limit=1)] == [project.id, DEFAULT_PROJECT]
            organization.projects.update(project.id, name="renamed")
            made = tenants.key(project.id)
            (listed,) = organization.projects.api_keys.list(project.id)
            assert (listed.id, listed.owner_project_access) == (made["id"], "active")
            assert organization.projects.api_keys.delete(listed.id, project_id=project.id).deleted
            key = organization.admin_api_keys.create(name="other", expires_in_seconds=3600)
            assert key.value.startswith("bgpo_admin_")
            assert {each.name for each in organization.admin_api_keys.list()} == {"other", "root"}
            assert organization.admin_api_keys.delete(key.id).deleted
            assert organization.projects.archive(project.id).archived_at is not None
            types = [
                each.type for each in organization.audit_logs.list(project_ids=[], event_types=["project.created"])
            ]
            assert types == ["project.created"]


class TestHeaders:
    def test_names_that_are_not_the_keys_own_are_refused(self, tenants: Tenants) -> None:
        project = tenants.project()
        key = tenants.key(project)["value"]
        own = {"openai-project": project, "openai-organization": DEFAULT_ORGANIZATION}
        assert status(tenants, key, **own) == (200, None)
        assert status(tenants, key, **(own | {"openai-project": "proj_x"})) == (401, "mismatched_project")
        assert status(tenants, key, **(own | {"openai-organization": "org-x"})) == (401, "mismatched_organization")

    def test_the_answer_names_the_callers_organization(self, tenants: Tenants) -> None:
        with tenants.http(tenants.key(tenants.project())["value"]) as http:
            assert http.get("/v1/models").headers["openai-organization"] == DEFAULT_ORGANIZATION
        with tenants.http() as http:
            assert "openai-organization" not in http.get("/v1/models").headers


class TestOfTheSettings:
    def test_they_are_the_default_projects_and_an_administrators(self, start_service: Callable[..., Service]) -> None:
        service = start_service(api_key="sk-a", admin_key="sk-b")
        tenants = Tenants(service, "sk-b")
        with tenants.http("sk-a") as http:
            http.post("/v1/files", data={"purpose": "user_data"}, files={"file": b"x"})
        key = tenants.key(DEFAULT_PROJECT, "files:read")["value"]
        with tenants.http(key) as http:
            assert len(http.get("/v1/files").json()["data"]) == 1
        assert status(tenants, "sk-b") == (403, "insufficient_permissions")
        assert status(tenants, None) == (401, "invalid_api_key")

    def test_without_any_a_stored_key_counts_and_a_bad_one_is_refused(self, service: Service) -> None:
        tenants = Tenants(service, "anything")
        project = tenants.project()
        made = tenants.key(project)
        assert status(tenants, None) == status(tenants, "sk-anything") == (200, None)
        with tenants.http(made["value"]) as http:
            http.post("/v1/files", data={"purpose": "user_data"}, files={"file": b"x"})
        with tenants.http() as http:
            assert http.get("/v1/files").json()["data"] == []
        assert status(tenants, made["value"][:-1]) == (401, "invalid_api_key")
        assert status(tenants, made["value"], origin="https://evil.example")[0] == 403


class TestTooMany:
    def test_an_address_with_wrong_keys_waits_and_known_keys_pass(self, make_tenants: Make) -> None:
        tenants = make_tenants(auth_failures_per_minute=5, key_cache_s=3600)
        project = tenants.project()
        known, fresh = tenants.key(project)["value"], tenants.key(project)["value"]
        assert status(tenants, known) == (200, None)
        assert [status(tenants, "sk-wrong")[0] for _ in range(6)] == [401] * 5 + [429]
        with tenants.http(fresh) as http:
            response = http.get("/v1/models")
        assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 0 < int(response.headers["retry-after"]) <= 60
        assert status(tenants, known) == (200, None)
        assert status(tenants, None) == (401, "invalid_api_key")


def test_polls_ask_for_the_scope_each_time(tenants: Tenants) -> None:
    project = tenants.project()
    key = tenants.key(project)["value"]
    job_id = tenants.job(key)
    tenants.service.claim(job_id)
    writer: dict[str, Any] = tenants.key(project, "files:write")
    url = f"/v1/fine_tuning/jobs/{job_id}"
    with tenants.http(key) as http:
        assert [http.get(url).status_code for _ in range(3)] == [200] * 3
    with tenants.http(writer["value"]) as http:
        assert http.get(url).status_code == 403
    with tenants.http(tenants.admin_key) as http:
        assert http.get(url).status_code == 403
    with tenants.http(tenants.key(tenants.project())["value"]) as http:
        assert http.get(url).status_code == 404
