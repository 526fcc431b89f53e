"""/v1/webhook_endpoints and /v1/webhook_event_types over HTTP, on both databases."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from typing import Any, get_args

import openai
import pytest

from jobs.context import WEBHOOK_TESTS
from jobs.services.webhook_endpoints import MAX_ENDPOINTS
from jobs.services.webhooks import deliver_due
from jobs.webhooks import EventType
from tests.api.tenants import Tenants
from tests.jobs.receivers import OK, receiver, saying, status
from tests.service import Service

URL = "/v1/webhook_endpoints"
KEY = base64.b64encode(b"k" * 32).decode()
SUCCEEDED, FAILED, CANCELLED = get_args(EventType)
BODY = {"name": "ours", "url": "https://receiver.example/hook", "event_types": [SUCCEEDED, CANCELLED]}
UNKNOWN = "we_" + "0" * 32


@pytest.fixture
def hooked(start_service: Callable[..., Service], database_url: str) -> Service:
    """A service without a webhook secret of its own that may call loopback."""
    return start_service(database_url=database_url, secrets_key=KEY, webhook_allow_private=True)


def call(service: Service, method: str, path: str = "", json: Any = None) -> tuple[int, Any]:
    with service.http() as http:
        response = http.request(method, URL + path, json=json)
    return response.status_code, response.json()


def make(service: Service, **changes: Any) -> dict[str, Any]:
    code, made = call(service, "POST", json=BODY | changes)
    assert code == 200, made
    assert isinstance(made, dict)
    return made


def param_and_code(answer: dict[str, Any]) -> tuple[str, str]:
    return answer["error"]["param"], answer["error"]["code"]


def test_create_retrieve_update_delete(hooked: Service) -> None:
    made = make(hooked)
    secret = made.pop("signing_secret")
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    assert made.pop("signing_secret_hint") == "whsec_..." + secret.rstrip("=")[-4:]
    assert (made["id"][:3], made["created_at"]) == ("we_", made["updated_at"])
    expected = {"object": "webhook_endpoint", "rl": {"active": True, "old_secret_until": None}, **BODY}
    assert {name: made[name] for name in expected} == expected
    assert set(made) == {*expected, "id", "created_at", "updated_at"}

    shown = call(hooked, "GET", f"/{made['id']}")[1]
    assert shown == made | {"signing_secret_hint": shown["signing_secret_hint"]}
    assert call(hooked, "GET")[1]["data"] == [shown]
    assert call(hooked, "POST", f"/{made['id']}", {}) == (200, shown)
    assert call(hooked, "POST", f"/{made['id']}", {"name": "ours", "url": None}) == (200, shown)

    wish = {"name": "theirs", "event_types": [FAILED, FAILED], "rl": {"active": False}}
    code, changed = call(hooked, "POST", f"/{made['id']}", wish)
    assert code == 200
    assert changed["updated_at"] >= shown["updated_at"]
    assert changed | {"updated_at": 0} == shown | {
        "name": "theirs",
        "event_types": [FAILED],
        "rl": {"active": False, "old_secret_until": None},
        "updated_at": 0,
    }
    assert call(hooked, "GET", f"/{made['id']}") == (200, changed)

    gone = {"id": made["id"], "object": "webhook_endpoint.deleted", "deleted": True}
    assert call(hooked, "DELETE", f"/{made['id']}") == (200, gone)
    assert call(hooked, "DELETE", f"/{made['id']}")[0] == 404
    assert call(hooked, "GET")[1]["data"] == []


def test_unknown_ids(hooked: Service) -> None:
    for endpoint_id in (UNKNOWN, "nonsense", "we_%00"):
        for method, path, json in (
            ("GET", "", None),
            ("POST", "", {}),
            ("DELETE", "", None),
            ("POST", "/rotate_secret", {}),
            ("POST", "/test", {"event_type": FAILED}),
        ):
            code, answer = call(hooked, method, f"/{endpoint_id}{path}", json)
            assert (code, *param_and_code(answer)) == (404, "id", "not_found"), (method, path)


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"name": None}, "name", "invalid_value"),
        ({"name": ""}, "name", "invalid_value"),
        ({"name": "a\x00b"}, None, "invalid_value"),
        ({"url": "ftp://receiver.example/"}, "url", "invalid_url"),
        ({"url": "https://user@receiver.example/"}, "url", "invalid_url"),
        ({"url": "https://169.254.169.254/latest"}, "url", "invalid_url"),
        ({"event_types": []}, "event_types", "invalid_value"),
        ({"event_types": ["*"]}, "event_types.0", "invalid_value"),
        ({"event_types": [FAILED, "batch.completed"]}, "event_types.1", "invalid_value"),
        ({"event_types": FAILED}, "event_types", "invalid_value"),
        ({"active": True}, "active", "unknown_parameter"),
        ({"rl": {"enabled": True}}, "rl.enabled", "unknown_parameter"),
        ({"signing_secret": "whsec_x"}, "signing_secret", "unknown_parameter"),
    ],
)
def test_what_cannot_be(hooked: Service, changes: dict[str, Any], param: str | None, code: str) -> None:
    endpoint_id = make(hooked)["id"]
    for path in ("", f"/{endpoint_id}"):
        if path and changes == {"name": None}:
            continue  # the name stays
        status_code, answer = call(hooked, "POST", path, BODY | changes)
        assert (status_code, *param_and_code(answer)) == (400, param, code)
    assert len(call(hooked, "GET")[1]["data"]) == 1


def test_what_is_missing(hooked: Service) -> None:
    for name in BODY:
        code, answer = call(hooked, "POST", json={key: value for key, value in BODY.items() if key != name})
        assert (code, *param_and_code(answer)) == (400, name, "missing_required_parameter")


def test_private_addresses_are_refused_where_they_are_not_allowed(start_service: Callable[..., Service]) -> None:
    strict = start_service()
    for url in ("http://receiver.example/", "https://127.0.0.1/", "https://receiver.example:8443/"):
        code, answer = call(strict, "POST", json=BODY | {"url": url})
        assert (code, *param_and_code(answer)) == (400, "url", "invalid_url")
    endpoint_id = make(strict)["id"]
    code, answer = call(strict, "POST", f"/{endpoint_id}", {"url": "https://127.0.0.1/"})
    assert (code, *param_and_code(answer)) == (400, "url", "invalid_url")


def test_pages_are_newest_first(hooked: Service) -> None:
    made = [make(hooked)["id"] for _ in range(5)][::-1]
    first = call(hooked, "GET", "?limit=2")[1]
    assert (first["first_id"], first["last_id"], first["has_more"]) == (made[0], made[1], True)
    rest = call(hooked, "GET", f"?limit=100&after={made[1]}")[1]
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == (made[2:], False)
    assert param_and_code(call(hooked, "GET", f"?after={UNKNOWN}")[1])[0] == "after"
    assert [call(hooked, "GET", f"?limit={limit}")[0] for limit in (0, 1, 100, 101)] == [400, 200, 200, 400]


def test_a_page_is_of_twenty_and_a_project_has_so_many(hooked: Service) -> None:
    for _ in range(MAX_ENDPOINTS):
        make(hooked)
    page = call(hooked, "GET")[1]
    assert (len(page["data"]), page["has_more"]) == (20, True)
    code, answer = call(hooked, "POST", json=BODY)
    assert code == 400
    assert f"at most {MAX_ENDPOINTS} webhook endpoints" in answer["error"]["message"]


def test_rotation(hooked: Service) -> None:
    made = make(hooked)
    path = f"/{made['id']}/rotate_secret"
    code, kept = call(hooked, "POST", path, {"keep_old_secret_active_for_24_hours": True})
    assert code == 200
    assert kept["signing_secret"] != made["signing_secret"]
    assert kept["rl"]["old_secret_until"] - kept["updated_at"] in (86_399, 86_400, 86_401)
    with hooked.http() as http:
        cut = http.post(URL + path).json()  # no body: the old one ends at once
    assert cut["rl"]["old_secret_until"] is None
    assert len({each["signing_secret"] for each in (made, kept, cut)}) == 3
    shown = call(hooked, "GET", f"/{made['id']}")[1]
    assert "signing_secret" not in shown
    assert shown["signing_secret_hint"] == cut["signing_secret_hint"]
    code, answer = call(hooked, "POST", path, {"keep": True})
    assert (code, *param_and_code(answer)) == (400, "keep", "unknown_parameter")


@pytest.mark.parametrize("answered", [200, 500, 307])
def test_trying_out_tells_what_the_receiver_answered(hooked: Service, answered: int) -> None:
    with receiver(saying(status(answered))) as server:
        made = make(hooked, url=f"http://127.0.0.1:{server.port}/")
        code, result = call(hooked, "POST", f"/{made['id']}/test", {"event_type": FAILED})
    assert (code, result) == (
        200,
        {
            "object": "webhook_endpoint.test",
            "webhook_endpoint_id": made["id"],
            "event_type": FAILED,
            "status_code": answered,
            "success": True,
        },
    )
    (request,) = server.requests
    event = openai.OpenAI(api_key="any").webhooks.unwrap(request.body, request.headers, secret=made["signing_secret"])
    assert isinstance(event, openai.types.webhooks.FineTuningJobFailedWebhookEvent)
    assert event.id.startswith("evt_")
    assert call(hooked, "GET", f"/{made['id']}")[1]["updated_at"] == made["updated_at"]


def test_trying_out_without_an_answer(hooked: Service) -> None:
    with receiver(saying(OK)) as server:
        url = f"http://127.0.0.1:{server.port}/?token=hush"
    endpoint_id = make(hooked, url=url)["id"]
    code, answer = call(hooked, "POST", f"/{endpoint_id}/test", {"event_type": FAILED})
    assert (code, *param_and_code(answer)) == (400, "url", "webhook_test_failed")
    assert answer["error"]["message"].endswith("could not be reached: it refused the connection.")
    code, answer = call(hooked, "POST", f"/{endpoint_id}/test", {"event_type": "batch.failed"})
    assert (code, *param_and_code(answer)) == (400, "event_type", "invalid_value")


def test_so_many_are_tried_out_at_a_time(hooked: Service) -> None:
    endpoint_id, end = make(hooked)["id"], threading.Event()
    for _ in range(WEBHOOK_TESTS):
        with pytest.raises(TimeoutError):
            hooked.ctx.webhook_slots.run(end.wait, within_s=0)
    with hooked.http() as http:
        response = http.post(f"{URL}/{endpoint_id}/test", json={"event_type": FAILED})
    end.set()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "busy")
    assert "webhook tests" in response.json()["error"]["message"]
    assert int(response.headers["retry-after"]) > 0


def test_trying_out_keeps_the_rules_of_egress(start_service: Callable[..., Service], sqlite_url: str) -> None:
    given = {"database_url": sqlite_url, "secrets_key": KEY}
    lax = start_service(webhook_allow_private=True, **given)
    with receiver(saying(OK)) as server:
        endpoint_id = make(lax, url=f"https://127.0.0.1:{server.port}/")["id"]
        strict = start_service(egress_ports=(443, server.port), **given)
        code, answer = call(strict, "POST", f"/{endpoint_id}/test", {"event_type": FAILED})
    assert (code, answer["error"]["param"], server.connections) == (400, "url", 0)
    assert "not public" in answer["error"]["message"]


def test_a_lost_key_is_told(start_service: Callable[..., Service], sqlite_url: str) -> None:
    endpoint_id = make(start_service(database_url=sqlite_url, secrets_key=KEY))["id"]
    other = start_service(database_url=sqlite_url, secrets_key=base64.b64encode(b"l" * 32).decode())
    code, answer = call(other, "POST", f"/{endpoint_id}/test", {"event_type": FAILED})
    assert (code, *param_and_code(answer)) == (400, "id", "secret_unreadable")
    assert call(other, "POST", f"/{endpoint_id}/rotate_secret", {})[0] == 200


def test_without_a_place_for_secrets_there_are_no_endpoints(
    start_service: Callable[..., Service], shared_postgres_database: str
) -> None:
    service = start_service(database_url=shared_postgres_database)
    code, answer = call(service, "POST", json=BODY)
    assert (code, answer["error"]["code"]) == (400, "secrets_unavailable")


def test_a_job_shows_the_deliveries_to_endpoints(hooked: Service) -> None:
    with receiver(saying(status(410))) as server:
        endpoint_id = make(hooked, url=f"http://127.0.0.1:{server.port}/?token=hush")["id"]
        job_id = hooked.create()["id"]
        with hooked.http() as http:
            http.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
            assert deliver_due(hooked.ctx.settings, hooked.ctx.db) == 1
            path = f"/v1/fine_tuning/jobs/{job_id}/webhook_deliveries"
            listed = http.get(path).json()
            (delivery,) = listed["data"]
            assert (delivery["webhook_endpoint_id"], delivery["state"]) == (endpoint_id, "dead")
            assert "hush" not in str(listed)
            assert http.post(f"{path}/{delivery['id']}/redeliver").json()["state"] == "pending"
            http.delete(f"{URL}/{endpoint_id}")
            assert http.get(path).json()["data"] == []


def test_event_types(hooked: Service) -> None:
    with hooked.http() as http:
        answer = http.get("/v1/webhook_event_types")
    assert answer.json() == {"object": "list", "data": [SUCCEEDED, FAILED, CANCELLED]}


def test_changes_are_in_the_audit_log_and_secrets_are_not(tenants: Tenants) -> None:
    project = tenants.project()
    with tenants.http(tenants.key(project)["value"]) as http:
        made = http.post(URL, json=BODY).json()
        path = f"{URL}/{made['id']}"
        http.post(path, json={"name": "theirs"})
        rotated = http.post(f"{path}/rotate_secret", json={}).json()
        http.post(f"{path}/test", json={"event_type": "nonsense"})
        http.delete(path)
    found = tenants.admin("GET", "audit_logs", params={"limit": 100, "project_ids[]": project})["data"]
    assert [(each["type"], each["status"], each["resource_id"]) for each in found] == [
        ("webhook_endpoint.deleted", 200, made["id"]),
        ("webhook_endpoint.tested", 400, made["id"]),
        ("webhook_endpoint_secret.rotated", 200, made["id"]),
        ("webhook_endpoint.updated", 200, made["id"]),
        ("webhook_endpoint.created", 200, made["id"]),
    ]
    for secret in (made["signing_secret"], rotated["signing_secret"]):
        assert secret not in str(found)
