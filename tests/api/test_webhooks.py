"""/v1/fine_tuning/jobs/{id}/webhook_deliveries over HTTP."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from jobs.ids import WEBHOOK, new_id
from jobs.services.webhooks import deliver_due
from tests.jobs.receivers import OK, receiver, saying, status
from tests.service import Service

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()


@pytest.fixture
def hooked(start_service: Callable[..., Service]) -> Service:
    """A service that may send webhooks to loopback."""
    return start_service(webhook_secret=SECRET, webhook_allow_private=True, api_key="key")


def call(service: Service, method: str, path: str, *, key: str = "key") -> tuple[int, dict[str, Any]]:
    with service.http(headers={"authorization": f"Bearer {key}"}) as http:
        response = http.request(method, f"/v1/fine_tuning/jobs/{path}")
    return response.status_code, response.json()


def test_without_a_key(hooked: Service) -> None:
    job_id, delivery_id = "ftjob-" + "0" * 32, new_id(WEBHOOK)
    for method, path in (
        ("GET", f"{job_id}/webhook_deliveries"),
        ("POST", f"{job_id}/webhook_deliveries/{delivery_id}/redeliver"),
    ):
        assert call(hooked, method, path, key="wrong")[0] == 401


def test_unknown_ids(hooked: Service) -> None:
    job_id, delivery_id = "ftjob-" + "0" * 32, new_id(WEBHOOK)
    for method, path in (
        ("GET", f"{job_id}/webhook_deliveries"),
        ("GET", "nonsense/webhook_deliveries"),
        ("POST", f"{job_id}/webhook_deliveries/{delivery_id}/redeliver"),
        ("POST", "nonsense/webhook_deliveries/nonsense/redeliver"),
    ):
        assert call(hooked, method, path)[0] == 404


def test_a_job_without_webhooks_shows_none(hooked: Service, make_hooked_job: Callable[[str | None], str]) -> None:
    job_id = make_hooked_job(None)
    call(hooked, "POST", f"{job_id}/cancel")
    shown = call(hooked, "GET", f"{job_id}/webhook_deliveries")
    assert shown == (200, {"object": "list", "data": [], "has_more": False})


def test_a_delivery_from_pending_to_dead_and_sent_again(
    hooked: Service, make_hooked_job: Callable[[str | None], str]
) -> None:
    with receiver(saying(status(410), OK)) as server:
        job_id = make_hooked_job(f"http://127.0.0.1:{server.port}/?token=hush")
        call(hooked, "POST", f"{job_id}/cancel")
        path = f"{job_id}/webhook_deliveries"
        (pending,) = call(hooked, "GET", path)[1]["data"]
        assert pending["object"] == "fine_tuning.job.webhook_delivery"
        assert (pending["type"], pending["state"], pending["attempts"]) == ("fine_tuning.job.cancelled", "pending", 0)
        assert pending["next_at"] >= pending["created_at"] > 0
        assert (pending["last_status"], pending["last_error"], pending["delivered_at"]) == (None, None, None)
        again = f"{path}/{pending['id']}/redeliver"
        refused, body = call(hooked, "POST", again)
        assert (refused, body["error"]["code"]) == (400, "invalid_state")

        deliver_due(hooked.ctx.settings, hooked.ctx.db)
        (dead,) = call(hooked, "GET", path)[1]["data"]
        assert (dead["id"], dead["state"], dead["last_status"]) == (pending["id"], "dead", 410)
        assert dead["next_at"] is None
        events = call(hooked, "GET", f"{job_id}/events")[1]["data"]
        (warning,) = [event for event in events if event["level"] == "warn"]
        assert warning["data"] == {"webhook_delivery": dead["id"]}

        code, revived = call(hooked, "POST", again)
        assert (code, revived["state"], revived["attempts"]) == (200, "pending", 0)
        deliver_due(hooked.ctx.settings, hooked.ctx.db)
        (delivered,) = call(hooked, "GET", path)[1]["data"]
        assert (delivered["state"], delivered["last_status"]) == ("delivered", 200)
        assert delivered["delivered_at"] is not None
        assert "hush" not in str((pending, dead, events, delivered))


@pytest.fixture
def make_hooked_job(hooked: Service) -> Callable[[str | None], str]:
    """Creates a job over HTTP and returns its id."""

    def make(url: str | None) -> str:
        with hooked.http(headers={"authorization": "Bearer key"}) as http:
            files = {"file": ("train.jsonl", hooked.rows())}
            training_file = http.post("/v1/files", data={"purpose": "fine-tune"}, files=files).json()["id"]
            rl = {} if url is None else {"rl": {"webhook_url": url}}
            response = http.post("/v1/fine_tuning/jobs", json=hooked.body(training_file=training_file, **rl))
        assert response.status_code == 200, response.text
        job_id: str = response.json()["id"]
        return job_id

    return make
