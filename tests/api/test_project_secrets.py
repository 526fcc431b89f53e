"""/v1/organization/projects/{project_id}/secrets: an administrator reaches the secrets of that project, of no other."""

from __future__ import annotations

from collections.abc import Callable

from tests.api.tenants import Tenants


def test_an_administrator_sets_lists_and_deletes_a_projects_secrets(make_tenants: Callable[..., Tenants]) -> None:
    tenants = make_tenants()
    project, other = tenants.project("one"), tenants.project("two")
    path = f"projects/{project}/secrets"
    made = tenants.admin("POST", path, json={"name": "TOKEN", "value": "hush-hush"})
    assert (made["object"], made["name"]) == ("secret", "TOKEN")
    assert tenants.admin("GET", path)["data"] == [made]
    with tenants.http(tenants.key(project)["value"]) as http:
        assert http.get("/v1/fine_tuning/secrets").json()["data"] == [made]
    assert tenants.admin("GET", f"projects/{other}/secrets")["data"] == []
    assert tenants.admin("DELETE", f"projects/{other}/secrets/TOKEN", 404)["error"]["param"] == "name"
    assert tenants.admin("DELETE", f"{path}/TOKEN") == {"name": "TOKEN", "object": "secret", "deleted": True}
    assert tenants.admin("GET", path)["data"] == []
    log = tenants.admin("GET", "audit_logs", params={"limit": 100})["data"]
    assert ["secret" in each["type"] for each in log].count(True) == 3
    assert "hush" not in str(log)


def test_a_project_that_is_not_there_has_none(tenants: Tenants) -> None:
    for method, path, body in (("POST", "", {"name": "A", "value": "b"}), ("GET", "", None), ("DELETE", "/A", None)):
        answer = tenants.admin(method, f"projects/proj_none/secrets{path}", 404, json=body)
        assert answer["error"]["param"] == "project_id"
