"""Judges and endpoints through the API: their keys and secrets get there, their failures are told and refuse no job."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from cli.ports import free_port
from jobs.repositories import projects
from jobs.tables import DEFAULT_ORGANIZATION, DEFAULT_PROJECT
from tests.jobs.receivers import receiver
from tests.rewards.servers import KEY, asked, computing, reply, verdict
from tests.service import Service

JOBS, GRADERS = "/v1/fine_tuning/jobs", "/v1/fine_tuning/graders"
SECRETS_KEY = base64.b64encode(b"k" * 32).decode()
JUDGED = {
    "type": "score_model", "name": "judged", "model": "critic",
    "input": [{"role": "user", "content": "{{ sample.output_text }} or {{ item.answer }}?"}],
}  # fmt: skip


def judge(port: int) -> dict[str, Any]:
    given = {"base_url": f"http://127.0.0.1:{port}/v1", "model": "gpt-x", "allow_private": True, "timeout_seconds": 20}
    return {"judges": {"critic": given | {"api_key": KEY}}}


def create(service: Service, grader: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The job, and the events about its grader as (level, message)."""
    method = service.body()["method"]
    method["reinforcement"]["grader"] = grader
    job = service.create(method=method)
    with service.http() as http:
        events = http.get(f"{JOBS}/{job['id']}/events").json()["data"]
    return job, [
        (one["level"], one["message"]) for one in events if one["message"].startswith(("Grader", "The grader"))
    ]


def run(service: Service, grader: Any) -> dict[str, Any]:
    with service.http() as http:
        response = http.post(f"{GRADERS}/run", json={"grader": grader, "model_sample": "5", "item": {"answer": "4"}})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_judge(start_service: Callable[..., Service]) -> None:
    with receiver(computing(lambda _: verdict(0.25))) as server:
        service = start_service(**judge(server.port))
        answer = run(service, JUDGED)
        assert answer["reward"] == 0.25
        used = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        (name,) = answer["model_grader_token_usage_per_model"]
        assert answer["model_grader_token_usage_per_model"] == {name: used}
        assert answer["metadata"]["sampled_model_name"] == name
        assert answer["metadata"]["token_usage"] == 10
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert asked(server)[0]["model"] == "gpt-x"
        assert KEY not in str(answer)
        _, told = create(service, JUDGED)
        assert len(server.requests) == 4
    (only,) = told
    assert (only[0], "rewards 0.25, 0.25, 0.25" in only[1]) == ("info", True)


def test_tokens_of_judges_count_and_end_with_the_quota(
    start_service: Callable[..., Service], database_url: str
) -> None:
    with receiver(computing(lambda _: verdict(0.25))) as server:
        service = start_service(database_url=database_url, **judge(server.port))

        def limit(tokens: int) -> None:
            with service.ctx.db.transaction() as session:
                given = {"judge_tokens_per_month": tokens}
                projects.update(session, DEFAULT_ORGANIZATION, DEFAULT_PROJECT, limits=given)

        def used() -> int:
            with service.http() as http:
                days = http.get("/v1/usage").json()["days"]
                quota: int = http.get("/v1/quota").json()["quotas"]["judge_tokens_per_month"]["used"]
            assert sum(day["judge_tokens"] for day in days) == quota
            return quota

        limit(75)
        run(service, JUDGED)
        assert used() == 10
        sample = {"model_sample": "5", "item": {"answer": "4"}}
        with service.http() as http:
            http.post(f"{GRADERS}/run_batch", json={"grader": JUDGED, "samples": [sample] * 3})
            assert used() == 40
            create(service, JUDGED)  # is tried on three rows
            assert used() == 70
            run(service, JUDGED)
            method = service.body()["method"]
            method["reinforcement"]["grader"] = JUDGED
            job = service.body(method=method, training_file=service.upload(service.rows()).json()["id"])
            many = {"grader": JUDGED, "samples": [sample]}
            for path, body in (
                (f"{GRADERS}/run", {"grader": JUDGED} | sample), (f"{GRADERS}/run_batch", many), (JOBS, job),
            ):  # fmt: skip
                response = http.post(path, json=body)
                error = response.json()["error"]
                assert (response.status_code, error["code"]) == (429, "insufficient_quota"), path
                assert "80 of its 75 judge tokens" in error["message"]
                assert response.headers["x-should-retry"] == "false"
            found = http.post(f"{JOBS}/validate", json=job).json()
            assert [problem["code"] for problem in found["problems"]] == ["insufficient_quota"]
            plain = service.body()["method"]["reinforcement"]["grader"]
            assert http.post(f"{GRADERS}/run", json={"grader": plain} | sample).status_code == 200
        assert (used(), len(server.requests)) == (80, 8)
        limit(81)
        run(service, JUDGED)


def test_a_judge_that_is_away_refuses_no_job(start_service: Callable[..., Service]) -> None:
    service = start_service(**judge(free_port()), grader_try_s=60)
    _, told = create(service, JUDGED)
    (only,) = told
    assert (only[0], "model_grader_server_error" in only[1]) == ("warn", True)


def test_an_endpoint(start_service: Callable[..., Service], database_url: str) -> None:
    secret = "value-of-the-secret"
    with receiver(computing(lambda _: reply({"score": 0.5}))) as server:
        service = start_service(
            database_url=database_url, secrets_key=SECRETS_KEY, grader_allow_private=True, grader_try_s=60
        )
        with service.http() as http:
            http.post("/v1/fine_tuning/secrets", json={"name": "TOKEN", "value": secret})
        grader = {
            "type": "endpoint", "name": "e", "url": f"http://127.0.0.1:{server.port}/score",
            "headers": {"Authorization": "Bearer {{ secret.TOKEN }}", "X-Team": "red"},
        }  # fmt: skip
        answer = run(service, grader)
        assert (answer["reward"], secret in str(answer)) == (0.5, False)
        received = server.requests[0].headers
        assert (received["authorization"], received["x-team"]) == (f"Bearer {secret}", "red")
        job, told = create(service, grader)
        shown = job["method"]["reinforcement"]["grader"]["headers"]
        assert shown == {"Authorization": "Bearer {{ secret.TOKEN }}", "X-Team": "***"}
        assert "rewards 0.5, 0.5, 0.5" in told[0][1]
        with service.http() as http:
            refused = http.delete("/v1/fine_tuning/secrets/TOKEN").json()["error"]
        assert (refused["code"], job["id"] in refused["message"]) == ("secret_in_use", True)
    _, told = create(service, grader)  # it is away now
    assert (told[0][0], "other_error" in told[0][1]) == ("warn", True)
