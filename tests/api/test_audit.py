"""The audit log: every write and every refused key, who and what, and nothing secret."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.api.tenants import Tenants

Make = Callable[..., Tenants]


def entries(tenants: Tenants, **filters: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tenants.admin("GET", "audit_logs", params={"limit": 100} | filters)["data"]
    return found


def test_every_write_is_there_with_who_what_and_how_it_ended(tenants: Tenants) -> None:
    project = tenants.project()
    key = tenants.key(project)
    job_id = tenants.job(key["value"])
    with tenants.http(key["value"]) as http:
        cancelled = http.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
        http.post(f"/v1/fine_tuning/jobs/{job_id}/pause")
        http.delete("/v1/files/file-none", params={"secret": "in-the-query"})
        http.get("/v1/files")
    found = entries(tenants, **{"project_ids[]": project})
    assert [(each["type"], each["status"], each["code"]) for each in found] == [
        ("file.deleted", 404, "not_found"),
        ("job.paused", 400, "invalid_state"),
        ("job.cancelled", 200, None),
        ("job.created", 200, None),
        ("file.created", 200, None),
    ]
    assert [each["resource_id"] for each in found[:4]] == ["file-none", job_id, job_id, job_id]
    assert {each["actor"]["api_key"]["id"] for each in found} == {key["id"]}
    assert {each["ip_address"] for each in found} == {"127.0.0.1"}
    assert found[2]["request_id"] == cancelled.headers["x-request-id"]
    by_admin = entries(tenants, **{"resource_ids[]": project})
    assert [each["type"] for each in by_admin] == ["project.created"]
    assert entries(tenants, **{"resource_ids[]": key["id"]})[0]["type"] == "api_key.created"
    text = str(entries(tenants))
    for secret in (key["value"], tenants.admin_key, "in-the-query", "2 + 2"):
        assert secret not in text


def test_refused_keys_are_there_up_to_a_number(tenants: Tenants) -> None:
    reader = tenants.key(tenants.project(), "files:read")
    with tenants.http(reader["value"]) as http:
        assert http.get("/v1/fine_tuning/jobs").status_code == 403
        assert http.post("/v1/fine_tuning/jobs", json={}).status_code == 403
    with tenants.http("bgpo_live_wrong") as http:
        for _ in range(30):
            assert http.get("/v1/files").status_code == 401
    denied = entries(tenants, **{"actor_ids[]": reader["id"]})
    assert [(each["type"], each["code"]) for each in denied] == [
        ("job.created", "insufficient_permissions"),
        ("access.denied", "insufficient_permissions"),
    ]
    failed = entries(tenants, **{"event_types[]": "login.failed"})
    assert len(failed) == 9  # with the denied one ten in this minute
    assert {(each["actor"], each["code"], each["path"]) for each in failed} == {(None, "invalid_api_key", "/v1/files")}
    assert "bgpo_live_wrong" not in str(failed)


def test_pages_and_times(tenants: Tenants) -> None:
    made = [tenants.project(str(number)) for number in range(5)]
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = tenants.admin("GET", "audit_logs", params={"limit": 2, "event_types[]": "project.created"} | after)
        seen += [each["resource_id"] for each in page["data"]]
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    assert seen == made[::-1]
    newest = entries(tenants)[0]["effective_at"]
    assert entries(tenants, **{"effective_at[gte]": newest + 1}) == []
    assert len(entries(tenants, **{"effective_at[lte]": newest + 1})) == 5
    tenants.admin("GET", "audit_logs", 400, params={"after": "audit_log-x"})


def test_an_entry_that_cannot_be_written_is_logged(tenants: Tenants, capsys: pytest.CaptureFixture[str]) -> None:
    with tenants.service.ctx.db.engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE audit_log RENAME TO gone")
        connection.commit()
    project = tenants.project()
    out = capsys.readouterr().out
    assert "audit.unwritten" in out
    assert project in out
