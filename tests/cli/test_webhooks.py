"""`bgpo webhook` against a running service."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any, get_args

import openai
import pytest

from jobs.webhooks import EventType
from tests.jobs.receivers import OK, receiver, saying
from tests.service import Service, start_service

__all__ = ["start_service"]


@pytest.fixture
def hooked(start_service: Callable[..., Service]) -> Service:
    """A service that may call loopback."""
    return start_service(webhook_allow_private=True)


def bgpo(service: Service, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.main", "webhook", *arguments, "--url", service.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done
    return done


def endpoint(service: Service) -> dict[str, Any]:
    with service.http() as http:
        (found,) = http.get("/v1/webhook_endpoints").json()["data"]
    assert isinstance(found, dict)
    return found


def test_an_endpoint_from_its_creation_to_its_end(hooked: Service) -> None:
    with receiver(saying(OK)) as server:
        target = f"http://127.0.0.1:{server.port}/"
        made = bgpo(hooked, "create", "ours", target)
        endpoint_id, secret = made.stderr.partition(";")[0], made.stdout.strip()
        shown = endpoint(hooked)
        assert (shown["id"], shown["name"], shown["url"]) == (endpoint_id, "ours", target)
        assert shown["event_types"] == list(get_args(EventType))
        assert bgpo(hooked, "test", endpoint_id).stdout == "200\n"
        rotated = bgpo(hooked, "rotate", endpoint_id, "--keep-old").stdout.strip()
        assert bgpo(hooked, "test", endpoint_id, "--event", "fine_tuning.job.failed").stdout == "200\n"
    unwrap = openai.OpenAI(api_key="any").webhooks.unwrap
    first, second = server.requests
    assert unwrap(first.body, first.headers, secret=secret).type == "fine_tuning.job.succeeded"
    for each in (secret, rotated):
        assert unwrap(second.body, second.headers, secret=each).type == "fine_tuning.job.failed"
    bgpo(hooked, "update", endpoint_id, "--name", "theirs", "--event", "fine_tuning.job.failed", "--inactive")
    heading, line = bgpo(hooked, "list").stdout.splitlines()
    assert heading.split() == ["endpoint", "name", "created", "active", "events", "url"]
    assert line.split()[:2] == [endpoint_id, "theirs"]
    assert line.split()[-3:] == ["no", "fine_tuning.job.failed", target]
    bgpo(hooked, "update", endpoint_id, "--active")
    assert (endpoint(hooked)["name"], endpoint(hooked)["rl"]["active"]) == ("theirs", True)
    assert "could not be reached" in bgpo(hooked, "test", endpoint_id, status=1).stderr
    assert bgpo(hooked, "delete", endpoint_id).stdout == f"deleted {endpoint_id}\n"
    assert "No such webhook endpoint" in bgpo(hooked, "delete", endpoint_id, status=1).stderr


def test_what_the_service_refuses(hooked: Service) -> None:
    refused = bgpo(hooked, "create", "ours", "https://x.example/", "--event", "batch.failed", status=1)
    assert "event_types.0" in refused.stderr
    assert "url" in bgpo(hooked, "create", "ours", "ftp://x.example/", status=1).stderr
