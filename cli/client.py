"""The service over HTTP, for the command line: the calls it needs, and their errors as one line each."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Self
from urllib.parse import quote

import httpx2

from cli.errors import CliError
from cli.progress import Point

TERMINAL = ("succeeded", "failed", "cancelled")
_TIMEOUT_S = 30.0
_GRADER_TIMEOUT_S = 240.0
"""More than the service lets a grader run."""


class Service:
    """One service by its URL. A context manager."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """`key` defaults to BGPO_API_KEY; an embedded service takes any."""
        self.url = url.rstrip("/")
        key = key or os.environ.get("BGPO_API_KEY") or "local"
        headers = {"Authorization": f"Bearer {key}"}
        # trust_env=False: a proxy of the environment has no business between us and a local service.
        self._http = httpx2.Client(base_url=f"{self.url}/v1/", headers=headers, timeout=_TIMEOUT_S, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def create_job(self, body: dict[str, Any]) -> dict[str, Any]:
        """Create a fine-tuning job."""
        return self._json("POST", "fine_tuning/jobs", json=body)

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as it is now."""
        return self._json("GET", f"fine_tuning/jobs/{job_id}")

    def wish(self, job_id: str, name: str) -> dict[str, Any]:
        """Cancel, pause or resume a job."""
        return self._json("POST", f"fine_tuning/jobs/{job_id}/{name}")

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job."""
        return self.wish(job_id, "cancel")

    def retry(self, job_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """A new job that goes on where a failed or cancelled one stopped."""
        return self._json("POST", f"fine_tuning/jobs/{job_id}/retry", json=body)

    def clone(self, job_id: str, changes: dict[str, Any]) -> dict[str, Any]:
        """A new job from the request of another one."""
        return self._json("POST", f"fine_tuning/jobs/{job_id}/clone", json=changes)

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        """All attempts, oldest first."""
        return list(reversed(list(self._pages(f"fine_tuning/jobs/{job_id}/attempts"))))

    def queue(self) -> dict[str, Any]:
        """What waits and runs, and what there is to run it."""
        return self._json("GET", "fine_tuning/queue")

    def workers(self) -> list[dict[str, Any]]:
        """The registry of workers."""
        found: list[dict[str, Any]] = self._json("GET", "organization/workers")["data"]
        return found

    def chat(self, body: dict[str, Any]) -> Iterator[str]:
        """The pieces of a streamed answer. Raises CliError."""
        try:
            with self._http.stream("POST", "chat/completions", json=body | {"stream": True}, timeout=600) as response:
                if response.status_code != 200:
                    response.read()
                    raise _failure(response)
                for line in response.iter_lines():
                    event = line.removeprefix("data: ")
                    if event == line or event == "[DONE]":  # a comment, or nothing
                        continue
                    chunk = json.loads(event)
                    if "error" in chunk:
                        raise CliError(f"{chunk['error']['message']} (code {chunk['error']['code']})")
                    yield from (choice["delta"].get("content", "") for choice in chunk["choices"])
        except httpx2.TransportError as error:
            raise CliError(f"the service at {self.url} does not answer: {error}") from error

    def pin(self, checkpoint_id: str, pinned: bool) -> dict[str, Any]:
        """Pin or unpin a checkpoint."""
        return self._json("PATCH", f"fine_tuning/checkpoints/{checkpoint_id}", json={"pinned": pinned})

    def run_grader(self, grader: dict[str, Any], sample: str, item: dict[str, Any]) -> dict[str, Any]:
        """What a grader says of one sample."""
        body = {"grader": grader, "model_sample": sample, "item": item}
        return self._json("POST", "fine_tuning/graders/run", json=body, timeout=_GRADER_TIMEOUT_S)

    def validate_grader(self, grader: dict[str, Any]) -> dict[str, Any]:
        """The grader with every default filled in."""
        body = {"grader": grader}
        answer = self._json("POST", "fine_tuning/graders/validate", json=body, timeout=_GRADER_TIMEOUT_S)
        normalised: dict[str, Any] = answer["grader"]
        return normalised

    def set_secret(self, name: str, value: str) -> dict[str, Any]:
        """Store a secret."""
        return self._json("POST", "fine_tuning/secrets", json={"name": name, "value": value})

    def secrets(self) -> list[dict[str, Any]]:
        """Names and times of all secrets."""
        found: list[dict[str, Any]] = self._json("GET", "fine_tuning/secrets")["data"]
        return found

    def delete_secret(self, name: str) -> None:
        """Delete a secret."""
        self._json("DELETE", f"fine_tuning/secrets/{quote(name, safe='')}")

    def webhook_event_types(self) -> list[str]:
        """All types of events."""
        found: list[str] = self._json("GET", "webhook_event_types")["data"]
        return found

    def create_webhook_endpoint(self, body: dict[str, Any]) -> dict[str, Any]:
        """Make a webhook endpoint; the answer has its secret."""
        return self._json("POST", "webhook_endpoints", json=body)

    def webhook_endpoints(self) -> list[dict[str, Any]]:
        """All webhook endpoints, newest first: a project has fewer than a page holds."""
        found: list[dict[str, Any]] = self._json("GET", "webhook_endpoints", params={"limit": 100})["data"]
        return found

    def update_webhook_endpoint(self, endpoint_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Change what the body names, unless it is null."""
        return self._json("POST", _endpoint(endpoint_id), json=body)

    def rotate_webhook_secret(self, endpoint_id: str, *, keep_old: bool) -> dict[str, Any]:
        """Another secret, which is in the answer."""
        body = {"keep_old_secret_active_for_24_hours": keep_old}
        return self._json("POST", f"{_endpoint(endpoint_id)}/rotate_secret", json=body)

    def test_webhook_endpoint(self, endpoint_id: str, event_type: str) -> dict[str, Any]:
        """Send one event now."""
        return self._json("POST", f"{_endpoint(endpoint_id)}/test", json={"event_type": event_type})

    def delete_webhook_endpoint(self, endpoint_id: str) -> None:
        """Delete a webhook endpoint."""
        self._json("DELETE", _endpoint(endpoint_id))

    def metrics(self, job_id: str, since_step: int = 0) -> list[Point]:
        """The job's values from a step on."""
        page = self._json("GET", f"fine_tuning/jobs/{job_id}/metrics", params={"since_step": since_step})
        return [Point(point["step"], point["split"], point["values"]) for point in page["data"]]

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """All events, oldest first."""
        return list(reversed(list(self._pages(f"fine_tuning/jobs/{job_id}/events"))))

    def checkpoints(self, job_id: str) -> list[dict[str, Any]]:
        """All checkpoints, newest first."""
        return list(self._pages(f"fine_tuning/jobs/{job_id}/checkpoints"))

    def download(self, checkpoint_id: str, target: Path) -> int:
        """Download a checkpoint into a new or empty folder, verifying each file; the number of bytes.

        Raises:
            CliError: a file does not have the size and sha256 of the manifest.
        """
        return self._download_files(f"fine_tuning/checkpoints/{checkpoint_id}/files", target)

    def evaluate(self, source: str, body: dict[str, Any]) -> dict[str, Any]:
        """Have a checkpoint, or else a model, evaluated."""
        if source.startswith("ftckpt_"):
            return self._json("POST", f"fine_tuning/checkpoints/{source}/evaluate", json=body)
        return self._json("POST", "fine_tuning/evaluations", json=body | {"model": source})

    def evaluation(self, evaluation_id: str) -> dict[str, Any]:
        """An evaluation as it is now."""
        return self._json("GET", f"fine_tuning/evaluations/{evaluation_id}")

    def export(self, checkpoint_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Have a checkpoint's weights written for use elsewhere."""
        return self._json("POST", f"fine_tuning/checkpoints/{checkpoint_id}/export", json=body)

    def exported(self, export_id: str) -> dict[str, Any]:
        """An export as it is now."""
        return self._json("GET", f"fine_tuning/exports/{export_id}")

    def download_export(self, export_id: str, target: Path) -> int:
        """As `download`, of an export."""
        return self._download_files(f"fine_tuning/exports/{export_id}/files", target)

    def _download_files(self, url: str, target: Path) -> int:
        require_empty(target)
        files = self._json("GET", url)["data"]
        for file in files:
            self._download_file(f"{url}/{file['path']}", target, file)
        return sum(int(file["bytes"]) for file in files)

    def _download_file(self, url: str, folder: Path, file: dict[str, Any]) -> None:
        relative = PurePosixPath(file["path"])
        if relative.is_absolute() or ".." in relative.parts:
            raise CliError(f"the service names a file outside its folder: {relative}")
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fetch(url, path, str(relative), file["sha256"])

    def download_file(self, file_id: str, target: Path) -> int:
        """Download a file to a new path, verified; the number of bytes. Raises CliError."""
        if target.exists():
            raise CliError(f"{target} exists")
        self._fetch(f"files/{file_id}/content", target, file_id)
        return target.stat().st_size

    def _fetch(self, url: str, path: Path, name: str, sha256: str | None = None) -> None:
        """Download to `path`; without `sha256` the answer says what it has to be."""
        digest = hashlib.sha256()
        unfinished = path.with_name(path.name + ".part")
        try:
            with self._http.stream("GET", url) as response:
                if response.status_code != 200:
                    response.read()
                    raise _failure(response)
                with unfinished.open("wb") as out:
                    for piece in response.iter_bytes():
                        digest.update(piece)
                        out.write(piece)
                expected = sha256 or response.headers["x-checksum-sha256"]
        except httpx2.TransportError as error:
            raise CliError(f"the download of {name} broke off: {error}") from error
        except OSError as error:
            raise CliError(f"cannot write {path}: {error.strerror}") from error
        if digest.hexdigest() != expected:
            raise CliError(f"{name} arrived damaged: its sha256 is not {expected}")
        unfinished.rename(path)

    def call(self, method: str, url: str, **options: Any) -> dict[str, Any]:
        """The JSON object a path below /v1 answers with. Raises CliError."""
        return self._json(method, url, **options)

    def all_of(self, url: str, **params: Any) -> list[dict[str, Any]]:
        """All objects of a list."""
        return [*self._pages(url, **params)]

    def _pages(self, url: str, **params: Any) -> Iterator[dict[str, Any]]:
        params = params | {"limit": 100}
        while True:
            page = self._json("GET", url, params=params)
            yield from page["data"]
            if not page["has_more"]:
                return
            params["after"] = page["data"][-1]["id"]

    def _json(self, method: str, url: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, url, **options)
        except httpx2.TransportError as error:
            raise CliError(f"no service answers at {self.url}: {error}") from error
        if response.status_code != 200:
            raise _failure(response)
        body: dict[str, Any] = response.json()
        return body


def require_empty(target: Path) -> None:
    """Raises CliError: there is something in the folder already."""
    if target.exists() and any(target.iterdir()):
        raise CliError(f"{target} exists and is not empty")


def _failure(response: httpx2.Response) -> CliError:
    """What an error response says, in one line."""
    try:
        error = response.json()["error"]
        message, code, param = error["message"], error.get("code"), error.get("param")
    except (json.JSONDecodeError, KeyError, TypeError):  # not ours: a proxy's page
        return CliError(f"the service answered {response.status_code}: {response.text[:200]}")
    return CliError(f"{message} (status {response.status_code}, code {code})", param=param)


def _endpoint(endpoint_id: str) -> str:
    return f"webhook_endpoints/{quote(endpoint_id, safe='')}"
