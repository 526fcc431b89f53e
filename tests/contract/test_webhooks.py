"""The receiver of docs/webhooks.md, run as it stands there, gets what the service sends."""

from __future__ import annotations

import base64
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from jobs.services.webhook_endpoints import MAX_ENDPOINTS
from jobs.services.webhooks import deliver_due
from jobs.settings import Settings
from jobs.webhooks import RETRY_DELAYS_S
from tests.service import Service

PAGE = Path(__file__).parents[2] / "docs" / "webhooks.md"
SECRET, OTHER = ("whsec_" + base64.b64encode(letter * 32).decode() for letter in (b"s", b"t"))


def test_the_page_tells_the_settings_and_the_schedule() -> None:
    text = " ".join(PAGE.read_text().split())
    named = set(re.findall(r"BGPO_[A-Z_]+", text))
    assert named <= {f"BGPO_{name.upper()}" for name in Settings.model_fields}
    units = {"s": 1, "min": 60, "h": 3600}
    told = re.findall(r"Tries come about (.+?) after one another", text)[0]
    waits = [int(number) * units[unit] for number, unit in re.findall(r"(\d+) (s|min|h)\b", told)]
    assert tuple(waits) == RETRY_DELAYS_S
    assert f"a project has at most {MAX_ENDPOINTS} " in text


@contextmanager
def documented_receiver(secret: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Its URL and its process."""
    code = re.findall(r"```python\n(# receiver\.py\n.*?)```", PAGE.read_text(), flags=re.DOTALL)[0]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = os.environ | {"WEBHOOK_SECRET": secret, "PORT": str(port)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}/", process
    finally:
        process.kill()
        process.communicate()


def wait_for(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return


@pytest.fixture
def hooked(start_service: Callable[..., Service]) -> Service:
    """A service that signs with two secrets."""
    return start_service(webhook_secret=f"{OTHER} {SECRET}", webhook_allow_private=True)


def cancelled_job(service: Service, url: str, tmp_path: Path) -> Any:
    """A job made with the client, and over."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(service.rows())
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
        training_file = client.files.create(file=path, purpose="fine-tune").id
        method: Any = service.body()["method"]
        extra = {"rl": {"webhook_url": url}}
        job: Any = client.fine_tuning.jobs.create(
            model="tiny", training_file=training_file, method=method, extra_body=extra
        )
        assert job.rl["webhook_url"] == url
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    return job


def deliveries(service: Service, job_id: str) -> Any:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
        listed: Any = client.get(f"/fine_tuning/jobs/{job_id}/webhook_deliveries", cast_to=object)
    return listed["data"]


@pytest.mark.parametrize("secret", [SECRET, OTHER])
def test_the_documented_receiver(hooked: Service, tmp_path: Path, secret: str) -> None:
    with documented_receiver(secret) as (url, process):
        job = cancelled_job(hooked, url, tmp_path)
        assert deliver_due(hooked.ctx.settings, hooked.ctx.db) == 1
        assert process.stdout is not None
        assert process.stdout.readline() == f"fine_tuning.job.cancelled {job.id}\n"
    (delivery,) = deliveries(hooked, job.id)
    assert (delivery["state"], delivery["last_status"]) == ("delivered", 204)


def test_the_documented_receiver_refuses_another_secret(hooked: Service, tmp_path: Path) -> None:
    with documented_receiver("whsec_" + base64.b64encode(b"u" * 32).decode()) as (url, _):
        job = cancelled_job(hooked, url, tmp_path)
        deliver_due(hooked.ctx.settings, hooked.ctx.db)
    (delivery,) = deliveries(hooked, job.id)
    assert (delivery["state"], delivery["last_status"], delivery["attempts"]) == ("pending", 400, 1)


def test_a_service_without_secret_refuses_webhooks(service: Service, tmp_path: Path) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        cancelled_job(service, "https://example.com/", tmp_path)
    assert refused.value.param == "rl.webhook_url"


@pytest.mark.parametrize("url", ["http://example.com/", "https://127.0.0.1/", "https://user@example.com/", "nonsense"])
def test_urls_that_lead_inside_are_refused(start_service: Callable[..., Service], tmp_path: Path, url: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        cancelled_job(start_service(webhook_secret=SECRET), url, tmp_path)
    assert (refused.value.param, refused.value.code) == ("rl.webhook_url", "invalid_url")
