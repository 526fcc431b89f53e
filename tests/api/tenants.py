"""A service with tenants, for tests: two projects with keys, and every object a path can name in one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from jobs.services import keys
from jobs.tables import DEFAULT_ORGANIZATION
from tests.service import Service

SETTINGS: dict[str, Any] = {"require_keys": True, "key_cache_s": 0, "auth_failures_per_minute": 100_000}


@dataclass
class Tenants:
    """A service nobody gets into without a key."""

    service: Service
    admin_key: str

    def http(self, key: str | None = None, **headers: str) -> httpx2.Client:
        """A client with a key."""
        given = {"authorization": f"Bearer {key}"} if key is not None else {}
        return self.service.http(headers=given | headers)

    def admin(self, method: str, path: str, status: int = 200, **options: Any) -> dict[str, Any]:
        """What /v1/organization answers to the administrator."""
        with self.http(self.admin_key) as http:
            response = http.request(method, f"/v1/organization/{path}", **options)
        assert response.status_code == status, response.text
        body: dict[str, Any] = response.json()
        return body

    def project(self, name: str = "p", **limits: int) -> str:
        """A new project; its id."""
        project_id: str = self.admin("POST", "projects", json={"name": name})["id"]
        if limits:
            self.admin("PUT", f"projects/{project_id}/limits", json=limits)
        return project_id

    def key(self, project_id: str, *scopes: str, **more: Any) -> dict[str, Any]:
        """A new key of a project."""
        body = {"name": "k", "scopes": list(scopes) or ["all"]} | more
        return self.admin("POST", f"projects/{project_id}/api_keys", json=body)

    def upload(self, key: str) -> str:
        """A dataset; its id."""
        with self.http(key) as http:
            file = {"file": ("train.jsonl", self.service.rows())}
            response = http.post("/v1/files", data={"purpose": "fine-tune"}, files=file)
        assert response.status_code == 200, response.text
        file_id: str = response.json()["id"]
        return file_id

    def job(self, key: str) -> str:
        """A queued job; its id."""
        with self.http(key) as http:
            response = http.post("/v1/fine_tuning/jobs", json=self.service.body(training_file=self.upload(key)))
        assert response.status_code == 200, response.text
        job_id: str = response.json()["id"]
        return job_id

    def checkpoint(self, job_id: str, folder: Path) -> str:
        """A checkpoint of a queued job, which a worker has from then on; its id."""
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        return self.service.checkpoint(self.service.claim(job_id), 2, folder)

    def result(self, task_id: str, folder: Path) -> None:
        """Let a task succeed with files that every download of one finds."""
        folder.mkdir(exist_ok=True)
        for name in ("model.safetensors", "results.jsonl"):
            (folder / name).write_bytes(b"{}")
        claim = self.service.claim(task_id)
        self.service.checkpoint(claim, 0, folder, final=True)
        self.service.finish(claim, "succeeded")


@pytest.fixture
def make_tenants(start_service: Callable[..., Service]) -> Callable[..., Tenants]:
    """Starts services that ask everybody for a key."""

    def make(**values: Any) -> Tenants:
        service = start_service(**(SETTINGS | values))
        made = keys.create_admin(service.ctx, DEFAULT_ORGANIZATION, name="root", expires_in_s=None, by=None)
        return Tenants(service, made.value)

    return make


@pytest.fixture
def tenants(make_tenants: Callable[..., Tenants]) -> Tenants:
    """One of them, on SQLite."""
    return make_tenants()
