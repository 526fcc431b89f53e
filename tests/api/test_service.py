"""What holds for every request: keys, error envelopes, headers, health, and stopping the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from api.auth import PUBLIC
from api.main import create_app
from jobs.settings import Settings
from migrations import upgrade

METHODS = ("get", "post", "delete", "put", "patch")


def error_of(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def assert_hardened(response: Any) -> None:
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert response.headers["cache-control"] == "no-store"
    assert "server" not in response.headers


def operations(app: Any) -> list[tuple[str, str]]:
    return [(method, path) for path, item in app.openapi()["paths"].items() for method in METHODS if method in item]


class TestKeys:
    def test_every_operation_but_health_needs_the_key(self, start_service: Callable[..., Any]) -> None:
        service = start_service(api_key="sk-right", auth_failures_per_minute=10_000)
        found = operations(create_app(service.ctx.settings))
        assert len(found) > 15
        with service.http() as http:
            for method, path in found:
                if path in PUBLIC:
                    continue
                url = path.replace("{", "").replace("}", "")
                for headers in ({}, {"authorization": "Bearer sk-wrong"}, {"authorization": "Basic sk-right"}):
                    error = error_of(http.request(method, url, headers=headers), 401)
                    assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
            assert http.get("/v1/files", headers={"authorization": "bearer sk-right"}).status_code == 200
            assert http.get("/healthz").json() == {"status": "ok"}

    def test_without_a_key_any_key_from_this_machine(self, service: Any) -> None:
        with service.http() as http:
            for headers in ({}, {"authorization": "Bearer x"}, {"origin": "http://localhost:3000"}):
                assert http.get("/v1/files", headers=headers).status_code == 200
            for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}):
                assert error_of(http.get("/v1/files", headers=headers), 403)["code"] == "insufficient_permissions"

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])  # noqa: S104 - must be refused
    def test_no_exposure_without_a_key(self, tmp_path: Path, host: str) -> None:
        with pytest.raises(ValueError, match="set BGPO_API_KEY"):
            create_app(Settings(home=tmp_path, host=host))
        create_app(Settings(home=tmp_path, host=host, api_key="sk"))

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
    def test_loopback_needs_none(self, tmp_path: Path, host: str) -> None:
        create_app(Settings(home=tmp_path, host=host))


class TestErrors:
    @pytest.mark.parametrize(
        ("method", "path", "status", "code"),
        [
            ("GET", "/nope", 404, "not_found"),
            ("GET", "/v1/files/", 404, "not_found"),
            ("PUT", "/v1/files", 405, "method_not_allowed"),
            ("DELETE", "/v1/fine_tuning/queue", 405, "method_not_allowed"),
            ("GET", "/docs", 404, "not_found"),
            ("GET", "/v1/models/ft:none", 404, "model_not_found"),
            ("GET", "/v1/models/..%2Fadmin", 404, "model_not_found"),
        ],
    )
    def test_envelope_and_headers(self, service: Any, method: str, path: str, status: int, code: str) -> None:
        with service.http() as http:
            response = http.request(method, path)
        assert error_of(response, status)["code"] == code
        assert response.headers["x-request-id"].startswith("req_")
        assert response.headers["openai-version"]
        assert response.headers["openai-processing-ms"].isdecimal()
        assert_hardened(response)
        assert "allow" in response.headers or status != 405

    def test_what_nobody_planned(self, service: Any) -> None:
        with service.ctx.db.engine.connect() as connection:
            connection.execute(sa.text("DROP TABLE files"))
            connection.commit()
        with service.http() as http:
            response = http.get("/v1/files")
            error = error_of(response, 500)
            assert (error["type"], error["code"]) == ("server_error", "server_error")
            assert response.headers["x-request-id"] in error["message"]
            for secret in ("Traceback", "SELECT", "files", "sqlite"):
                assert secret not in response.text
            assert http.get("/v1/fine_tuning/jobs").status_code == 200


class TestHeaders:
    def test_every_answer_has_them(self, service: Any) -> None:
        file_id = service.upload(service.rows()).json()["id"]
        with service.http() as http:
            for path in ("/healthz", "/metrics", "/openapi.json", "/v1/files", f"/v1/files/{file_id}"):
                response = http.get(path)
                assert response.status_code == 200
                assert_hardened(response)

    def test_stored_bytes_may_be_kept_by_their_client_alone(self, service: Any) -> None:
        file_id = service.upload(service.rows()).json()["id"]
        with service.http() as http:
            response = http.get(f"/v1/files/{file_id}/content")
        assert response.headers["cache-control"] == "private, no-cache"
        assert response.headers["content-disposition"].startswith("attachment;")

    def test_no_page_of_another_origin_may_read_an_answer(self, service: Any) -> None:
        asks = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
        with service.http() as http:
            answers = [http.get("/v1/files", headers=asks), http.options("/v1/files", headers=asks)]
        assert [answer.status_code for answer in answers] == [200, 405]
        for answer in answers:
            assert not [name for name in answer.headers if name.startswith("access-control")]


class TestHealth:
    def test_ready_when_all_parts_are(self, start_service: Callable[..., Any], redis_url: str) -> None:
        service = start_service(redis_url=redis_url)
        with service.http() as http:
            response = http.get("/readyz")
        assert (response.status_code, set(response.json()["checks"].values())) == (200, {"ok"})

    def test_names_the_part_that_is_not(self, service: Any) -> None:
        with service.ctx.db.engine.connect() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = '0000'"))
            connection.commit()
        with service.http() as http:
            response = http.get("/readyz")
        assert response.status_code == 503
        assert response.json()["checks"] == {"database": "outdated", "broker": "failed", "artifacts": "ok"}


class TestDescription:
    def test_making_the_application_touches_nothing(self, tmp_path: Path) -> None:
        create_app(Settings(home=tmp_path / "home"))
        assert not (tmp_path / "home").exists()


def test_sigterm_ends_the_process_and_its_streams(tmp_path: Path) -> None:
    """`python -m api` as it is started in production."""
    upgrade(f"sqlite:///{tmp_path / 'bgpo.db'}")
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").write_text("{}")
    env = {"PATH": os.environ["PATH"], "BGPO_HOME": str(tmp_path), "BGPO_PORT": "0", "BGPO_LOG_FORMAT": "json"}
    env |= {"BGPO_MODEL_ROOT": str(tmp_path / "models"), "BGPO_REDIS_URL": "redis://127.0.0.1:1/0"}
    log = tmp_path / "log"
    with log.open("wb") as stderr, subprocess.Popen([sys.executable, "-m", "api"], env=env, stderr=stderr) as process:
        try:
            url = _served(log, process)
            rows = b'{"messages": [{"role": "user", "content": "a"}]}\n' * 10
            grader = {"type": "string_check", "name": "g", "input": "a", "reference": "a", "operation": "eq"}
            with httpx2.Client(base_url=url, trust_env=False, timeout=30) as http:
                file = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": rows}).json()
                method = {"type": "reinforcement", "reinforcement": {"grader": grader}}
                body = {"model": "tiny", "training_file": file["id"], "method": method}
                job = http.post("/v1/fine_tuning/jobs", json=body).json()
                with http.stream("GET", f"/v1/fine_tuning/jobs/{job['id']}/events/stream") as stream:
                    lines = stream.iter_lines()
                    next(lines)
                    process.send_signal(signal.SIGTERM)
                    assert "[DONE]" not in "".join(lines)
            assert process.wait(20) in (0, -signal.SIGTERM)
            assert "Traceback" not in log.read_text()
        finally:
            process.kill()


def _served(log: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 60
    while "Uvicorn running on " not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return log.read_text().partition("Uvicorn running on ")[2].split()[0]
