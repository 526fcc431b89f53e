"""Request rates and quotas of a project over HTTP, usage, and what a project is told of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa

from api.rates import duration
from jobs.db import now
from jobs.ids import COMPLETION, new_id
from jobs.repositories import completions
from jobs.services.quotas import hold_budgets
from jobs.tables import Completion
from tests.api.tenants import Tenants
from tests.service import Service

Make = Callable[..., Tenants]


def error_of(response: httpx2.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["type"]


class TestRates:
    def test_headers_and_the_end_of_a_limit(self, make_tenants: Make, redis_url: str) -> None:
        tenants = make_tenants(redis_url=redis_url)
        project = tenants.project("limited", read_requests_per_minute=3, write_requests_per_minute=1)
        key, other = tenants.key(project)["value"], tenants.key(project)["value"]
        with tenants.http(key) as http:
            first, second = http.get("/v1/models"), http.get("/v1/models")
        names = [f"x-ratelimit-{name}-requests" for name in ("limit", "remaining", "reset")]
        assert [first.headers[name] for name in names[:2]] == ["3", "2"]
        assert second.headers[names[1]] == "1"
        assert re.fullmatch(r"(1m)?\d+s", first.headers[names[2]])
        with tenants.http(other) as http:  # another key of the project
            assert http.get("/v1/models").status_code == 200
            refused = http.get("/v1/models")
            assert error_of(refused) == (429, "rate_limit_exceeded", "requests")
            assert 0 < int(refused.headers["retry-after"]) <= 60
            assert refused.headers[names[1]] == "0"
            assert http.delete("/v1/files/file-x").status_code == 404
            assert http.delete("/v1/files/file-x").status_code == 429
        with tenants.http(tenants.key(tenants.project())["value"]) as http:
            response = http.get("/v1/models")
            assert response.status_code == 200
            assert names[0] not in response.headers

    def test_processes_count_together(
        self, make_tenants: Make, start_service: Callable[..., Service], redis_url: str
    ) -> None:
        tenants = make_tenants(redis_url=redis_url, rate_read=3)
        key = tenants.key(tenants.project())["value"]
        settings = tenants.service.ctx.settings
        beside = Tenants(
            start_service(home=settings.home, redis_url=redis_url, rate_read=3, require_keys=True), tenants.admin_key
        )
        found = []
        for each in (tenants, beside, tenants, beside):
            with each.http(key) as http:
                found.append(http.get("/v1/models").status_code)
        assert found == [200, 200, 200, 429]

    def test_without_redis_each_counts_for_itself(self, make_tenants: Make, capsys: pytest.CaptureFixture[str]) -> None:
        tenants = make_tenants(rate_read=2)  # whose Redis is away
        key = tenants.key(tenants.project())["value"]
        with tenants.http(key) as http:
            assert [http.get("/v1/models").status_code for _ in range(3)] == [200, 200, 429]
        assert "rates.alone" in capsys.readouterr().out

    def test_polls_count(self, make_tenants: Make) -> None:
        tenants = make_tenants(rate_read=3)
        key = tenants.key(tenants.project())["value"]
        job_id = tenants.job(key)
        tenants.service.claim(job_id)
        with tenants.http(key) as http:
            found = [http.get(f"/v1/fine_tuning/jobs/{job_id}") for _ in range(4)]
        assert [each.status_code for each in found] == [200, 200, 200, 429]
        assert [each.headers["x-ratelimit-remaining-requests"] for each in found] == ["2", "1", "0", "0"]

    def test_tokens_of_chats(self, make_tenants: Make, redis_url: str) -> None:
        tenants = make_tenants(redis_url=redis_url)
        key = tenants.key(tenants.project("chatty", inference_tokens_per_minute=100))["value"]

        def ask(http: httpx2.Client, tokens: int | None, text: str = "four" * 5) -> httpx2.Response:
            body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": tokens}
            return http.post("/v1/chat/completions", json=body)

        names = [f"x-ratelimit-{name}-tokens" for name in ("limit", "remaining", "reset")]
        with tenants.http(key) as http:
            first = ask(http, 55)
            assert first.status_code == 503, "no generator runs here"
            assert [first.headers[name] for name in names[:2]] == ["100", "40"]
            assert re.fullmatch(r"(1m)?\d+s", first.headers[names[2]])
            refused = ask(http, 36)
            assert error_of(refused) == (429, "rate_limit_exceeded", "tokens")
            assert refused.headers[names[1]] == "40"
            assert 0 < int(refused.headers["retry-after"]) <= 60
            assert ask(http, 30, "\N{GREEK SMALL LETTER ALPHA}" * 19).headers[names[1]] == "0"
            for large in (ask(http, 96), ask(http, None)):
                assert error_of(large) == (429, "rate_limit_exceeded", "tokens")
                assert large.headers["x-should-retry"] == "false"
        with tenants.http(tenants.key(tenants.project())["value"]) as http:
            assert names[0] not in ask(http, 10).headers

    def test_durations_as_openai_writes_them(self) -> None:
        assert [duration(seconds) for seconds in (0, 0.12, 1, 59.2, 360)] == ["0ms", "120ms", "1s", "1m0s", "6m0s"]


class TestQuotas:
    def test_files(self, tenants: Tenants) -> None:
        project = tenants.project("small", files=2, file_bytes=100)
        key = tenants.key(project)["value"]
        with tenants.http(key) as http:

            def upload(size: int) -> httpx2.Response:
                return http.post("/v1/files", data={"purpose": "user_data"}, files={"file": b"x" * size})

            first = upload(60)
            assert first.status_code == 200
            too_large = upload(41)
            assert error_of(too_large) == (429, "insufficient_quota", "insufficient_quota")
            assert too_large.headers["x-should-retry"] == "false"
            assert upload(40).status_code == 200
            http.delete(f"/v1/files/{first.json()['id']}")
            assert upload(10).status_code == 200
            assert "may keep 2" in upload(1).json()["error"]["message"]
            quotas = http.get("/v1/quota").json()["quotas"]
        assert quotas["files"] == {"limit": 2, "used": 2, "remaining": 0}
        assert quotas["file_bytes"] == {"limit": 100, "used": 50, "remaining": 50}
        assert len(list(tenants.service.ctx.store.walk("files"))) == 2

    def test_queued_jobs_of_the_project_before_those_of_the_service(self, make_tenants: Make) -> None:
        tenants = make_tenants(max_queued_jobs=1)
        more, same = tenants.project("more", queued_jobs=2), tenants.project("same")
        for project, number in ((more, 2), (same, 1)):
            key = tenants.key(project)["value"]
            for _ in range(number):
                tenants.job(key)
            with tenants.http(key) as http:
                body = tenants.service.body(training_file=tenants.upload(key))
                assert error_of(http.post("/v1/fine_tuning/jobs", json=body))[1] == "insufficient_quota"
                assert http.get("/v1/fine_tuning/queue").json()["max_queued_jobs"] == number

    def test_a_used_up_budget_pauses_with_the_reason_and_resumes_with_more(
        self, tenants: Tenants, tmp_path: Path
    ) -> None:
        project = tenants.project()
        key = tenants.key(project)["value"]
        running, waiting = tenants.job(key), tenants.job(key)
        claim = tenants.service.claim(running)
        tenants.admin("PUT", f"projects/{project}/limits", json={"gpu_seconds_per_month": 0})
        with tenants.service.ctx.db.transaction() as session:
            assert hold_budgets(session) == [running, waiting]
        with tenants.service.ctx.db.transaction() as session:
            assert hold_budgets(session) == []
        url = "/v1/fine_tuning/jobs"
        with tenants.http(key) as http:
            job = http.get(f"{url}/{running}").json()
            assert (job["status"], job["rl"]["phase"]) == ("running", "pausing")
            tenants.service.finish(claim, "paused")
            for job_id in (running, waiting):
                job = http.get(f"{url}/{job_id}").json()
                assert (job["status"], job["rl"]["pause_reason"]["code"]) == ("paused", "budget_exceeded")
                assert "of its 0 accelerator-seconds of this month" in job["rl"]["pause_reason"]["message"]
                assert error_of(http.post(f"{url}/{job_id}/resume"))[:2] == (429, "insufficient_quota")
            body = tenants.service.body(training_file=tenants.upload(key))
            assert error_of(http.post(url, json=body))[:2] == (429, "insufficient_quota")
            tenants.admin("PUT", f"projects/{project}/limits", json={"gpu_seconds_per_month": 10_000})
            assert http.post(f"{url}/{running}/resume").json()["status"] == "queued"

    def test_tokens_of_chats(self, tenants: Tenants) -> None:
        project = tenants.project("chatty", inference_tokens_per_month=30)
        key = tenants.key(project)["value"]

        def answered(project_id: str, state: str, **tokens: int) -> None:
            row = Completion(id=new_id(COMPLETION), project_id=project_id, model="tiny", base_model="tiny", request={})
            with tenants.service.ctx.db.transaction() as session:
                completions.insert(session, row, 60)
                done = sa.update(Completion).where(Completion.id == row.id)
                session.execute(done.values(state=state, finished_at=now(), **tokens))

        answered(project, "done", prompt_tokens=20, completion_tokens=9)
        answered(project, "cancelled")
        answered(tenants.project(), "done", prompt_tokens=100, completion_tokens=100)
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
        with tenants.http(key) as http:
            usage = http.get("/v1/usage").json()
            assert (usage["inference_tokens"], usage["days"][-1]["inference_tokens"]) == (29, 29)
            quota = http.get("/v1/quota").json()["quotas"]["inference_tokens_per_month"]
            assert quota == {"limit": 30, "used": 29, "remaining": 1}
            assert error_of(http.post("/v1/chat/completions", json=body))[:2] == (503, "no_capacity")
            answered(project, "done", prompt_tokens=1, completion_tokens=0)
            refused = http.post("/v1/chat/completions", json=body)
            assert error_of(refused)[:2] == (429, "insufficient_quota")
            assert refused.headers["x-should-retry"] == "false"

    def test_usage_is_told_by_day_and_job(self, tenants: Tenants) -> None:
        key = tenants.key(tenants.project())["value"]
        job_id = tenants.job(key)
        tenants.service.claim(job_id)
        with tenants.http(key) as http:
            usage = http.get("/v1/usage").json()
            assert [each["job"] for each in usage["jobs"]] == [job_id]
            assert usage["days"][-1]["files"] == 1
            assert sum(day["gpu_seconds"] for day in usage["days"]) == pytest.approx(usage["gpu_seconds"])
            assert http.get("/v1/usage", params={"start_time": 86_400, "end_time": 172_800}).json()["jobs"] == []
            for wrong in ({"start_time": 10, "end_time": 0}, {"start_time": 0}, {"end_time": -1}):
                assert http.get("/v1/usage", params=wrong).status_code == 400

    def test_limits_are_checked_and_replaced_as_a_whole(self, tenants: Tenants) -> None:
        project = tenants.project("p", files=3, running_jobs=1)
        assert tenants.admin("GET", f"projects/{project}/limits")["effective"]["queued_jobs"] == 100
        found = tenants.admin("PUT", f"projects/{project}/limits", json={"file_bytes": 5})["limits"]
        assert {name: value for name, value in found.items() if value is not None} == {"file_bytes": 5}
        for wrong in ({"file": 1}, {"files": -1}, {"files": "3"}, {"files": 1.5}, {"read_requests_per_minute": 0}):
            tenants.admin("PUT", f"projects/{project}/limits", 400, json=wrong)
