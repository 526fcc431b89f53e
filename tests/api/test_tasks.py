"""/v1/fine_tuning/evaluations and /exports: what may be asked, what the defaults are, results, lists, deletion."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from jobs.ids import FILE, new_id
from jobs.kinds import Kind
from jobs.repositories import checkpoints, job_rows, jobs, samples
from jobs.repositories.jobs import Claim, JobError
from jobs.tables import DEFAULT_PROJECT, Job
from tests.service import Service

EVALUATIONS, EXPORTS = "/v1/fine_tuning/evaluations", "/v1/fine_tuning/exports"
GRADER = {
    "type": "string_check",
    "name": "same",
    "operation": "eq",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
}
METRICS = {
    "sampled_responses": 12.0,
    "sampled_graded": 10.0,
    "sampled_grader_errors": 2.0,
    "sampled_reward_mean": 0.5,
    "sampled_reward_stderr": 0.25,
    "sampled_solved_rate": 0.4,
    "greedy_responses": 6.0,
    "greedy_graded": 0.0,
    "greedy_grader_errors": 6.0,
}


def send(service: Service, method: str, path: str, status: int = 200, **options: Any) -> dict[str, Any]:
    with service.http() as http:
        response = http.request(method, path, **options)
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()
    return body


def error_of(service: Service, path: str, body: dict[str, Any], status: int = 400) -> tuple[str, str | None]:
    error = send(service, "POST", path, status, json=body)["error"]
    return error["code"], error["param"]


def job_row(service: Service, job_id: str) -> Job:
    with service.ctx.db.read() as session:
        return session.get_one(Job, job_id)


@pytest.fixture
def checkpoint(service: Service, tmp_path: Path) -> tuple[dict[str, Any], str]:
    """A job whose worker has made a checkpoint, of all weights; and the checkpoint's id."""
    valid = service.upload(service.rows(6)).json()["id"]
    body = service.body()
    body["method"]["reinforcement"]["hyperparameters"] |= {"max_completion_length": 16, "diffusion_steps": 8}
    made = service.create(validation_file=valid, method=body["method"], seed=9, rl={"on_grader_error": "zero"})
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return made, service.checkpoint(service.claim(made["id"]), 2, folder)


def succeed(service: Service, task_id: str, folder: Path, metrics: dict[str, float]) -> Claim:
    """Do a task as a worker does, with the files of a folder as its result."""
    claim = service.claim(task_id)
    key = f"checkpoints/{task_id}/{claim.epoch}/step-000000"
    manifest = service.ctx.store.publish_directory(folder, key)
    with service.ctx.db.transaction() as session:
        assert checkpoints.insert(session, task_id, claim.epoch, 0, key, manifest, True, metrics)
    service.finish(claim, "succeeded")
    return claim


class TestEvaluate:
    """Asking for one."""

    def test_an_empty_body_repeats_the_jobs_own_evaluation(
        self, service: Service, checkpoint: tuple[dict[str, Any], str]
    ) -> None:
        job, checkpoint_id = checkpoint
        made = send(service, "POST", f"/v1/fine_tuning/checkpoints/{checkpoint_id}/evaluate")
        assert made["object"] == "fine_tuning.evaluation"
        assert (made["status"], made["model"], made["base_model"]) == ("queued", checkpoint_id, "tiny")
        assert (made["checkpoint"], made["file"], made["seed"]) == (checkpoint_id, job["validation_file"], 9)
        assert made["grader"] == job["method"]["reinforcement"]["grader"]
        assert (made["sampler"]["max_completion_length"], made["sampler"]["diffusion_steps"]) == (16, 8)
        assert (made["on_grader_error"], made["answers"], made["total_responses"]) == ("zero", 1, 12)
        assert (made["results"], made["error"], made["started_at"]) == (None, None, None)
        ours, theirs = job_row(service, made["id"]).recipe, job_row(service, job["id"]).recipe
        for name in ("seed", "precision", "grading"):
            assert ours[name] == theirs[name]
        for name in ("grader", "rollout"):
            assert ours["method"][name] == theirs["method"][name]

    def test_the_body_says_otherwise(self, service: Service, checkpoint: tuple[dict[str, Any], str]) -> None:
        file = service.upload(service.rows(20)).json()["id"]
        body = {
            "file": file,
            "grader": GRADER | {"name": "other"},
            "sampler": {"max_completion_length": 32, "block_length": "auto", "temperature": 0.5},
            **{"samples": 5, "answers": 3, "seed": 0, "precision": "bfloat16", "on_grader_error": "drop"},
            "metadata": {"run": "a"},
        }
        made = send(service, "POST", f"/v1/fine_tuning/checkpoints/{checkpoint[1]}/evaluate", json=body)
        assert (made["file"], made["grader"]["name"], made["samples"]) == (file, "other", 5)
        assert (made["answers"], made["total_responses"], made["seed"]) == (3, 20, 0)
        assert (made["precision"], made["on_grader_error"], made["metadata"]) == ("bfloat16", "drop", {"run": "a"})
        sampler = made["sampler"]
        assert (sampler["block_length"], sampler["diffusion_steps"], sampler["temperature"]) == (32, 16, 0.5)

    def test_a_base_model(self, service: Service) -> None:
        file = service.upload(service.rows()).json()["id"]
        made = send(service, "POST", EVALUATIONS, json={"model": "tiny", "file": file, "grader": GRADER})
        assert (made["model"], made["base_model"], made["checkpoint"]) == ("tiny", "tiny", None)
        assert (made["seed"], made["precision"], made["on_grader_error"]) == (0, "float32", "drop")

    def test_what_is_wrong_is_said(self, service: Service, checkpoint: tuple[dict[str, Any], str]) -> None:
        file = service.upload(service.rows()).json()["id"]
        right = {"model": "tiny", "file": file, "grader": GRADER}
        cases: list[tuple[dict[str, Any], tuple[str, str]]] = [
            ({"model": "tiny", "grader": GRADER}, ("missing_required_parameter", "file")),
            ({"model": "tiny", "file": file}, ("missing_required_parameter", "grader")),
            (right | {"colour": "red"}, ("unknown_parameter", "colour")),
            (right | {"file": new_id(FILE)}, ("invalid_file", "file")),
            (right | {"grader": GRADER | {"reference": "{{ item.nothing }}"}}, ("invalid_grader", "grader")),
            (right | {"sampler": {"block_length": 7}}, ("invalid_value", "sampler.block_length")),
            (right | {"sampler": {"seed": 7}}, ("unknown_parameter", "sampler.seed")),
            (right | {"answers": 0}, ("invalid_value", "answers")),
            (right | {"metadata": {"a": "\x00"}}, ("invalid_value", None)),  # type: ignore[dict-item]
        ]
        for body, expected in cases:
            assert error_of(service, EVALUATIONS, body) == expected, body
        assert error_of(service, EVALUATIONS, right | {"model": "none"}, 404) == ("model_not_found", "model")
        missing = send(service, "POST", "/v1/fine_tuning/checkpoints/ftckpt_0/evaluate", 404, json={})
        assert missing["error"]["param"] == "id"
        assert send(service, "GET", EVALUATIONS)["data"] == []

    def test_a_key_makes_one_and_the_same(self, service: Service, checkpoint: tuple[dict[str, Any], str]) -> None:
        url, headers = f"/v1/fine_tuning/checkpoints/{checkpoint[1]}/evaluate", {"idempotency-key": "k"}
        one, two = (send(service, "POST", url, json={}, headers=headers)["id"] for _ in range(2))
        assert one == two
        send(service, "POST", url, 409, json={"seed": 1}, headers=headers)
        retried = [
            send(service, "POST", url, json={"seed": 2}, headers={"x-stainless-retry-count": str(n)})["id"]
            for n in range(2)
        ]
        assert len(set(retried)) == 1

    def test_it_waits_in_the_queue_of_jobs(self, start_service: Any) -> None:
        service = start_service(max_queued_jobs=1)
        file = service.upload(service.rows()).json()["id"]
        right = {"model": "tiny", "file": file, "grader": GRADER}
        made = send(service, "POST", EVALUATIONS, json=right)
        assert send(service, "GET", "/v1/fine_tuning/queue")["waiting"][0]["job"] == made["id"]
        assert error_of(service, EVALUATIONS, right, 429)[0] == "insufficient_quota"
        assert send(service, "DELETE", f"/v1/files/{file}", 400)["error"]["code"] is not None, "it is in use"


class TestResults:
    """What an evaluation leaves."""

    @pytest.fixture
    def evaluation(self, service: Service) -> str:
        file = service.upload(service.rows(6)).json()["id"]
        body = {"model": "tiny", "file": file, "grader": GRADER, "answers": 2}
        made: str = send(service, "POST", EVALUATIONS, json=body)["id"]
        return made

    def test_the_aggregate_and_the_answers(self, service: Service, evaluation: str, tmp_path: Path) -> None:
        claim = service.claim(evaluation)
        with service.ctx.db.transaction() as session:
            for index in range(18):
                fields: dict[str, Any] = {"step": 0, "split": "validation", "prompt": "2 + 2", "completion": str(index)}
                fields |= {"reward": None if index == 4 else 1.0, "scores": {"same": 1.0}}
                fields |= {"error": "other_error: no" if index == 4 else None}
                assert samples.upsert(session, evaluation, claim.epoch, index=index, **fields)
        url = f"{EVALUATIONS}/{evaluation}"
        assert send(service, "GET", url)["status"] == "running"
        send(service, "GET", f"{url}/content", 404)
        with service.ctx.db.transaction() as session:
            gone = JobError("worker_lost", "gone")
            assert jobs.hand_back(session, evaluation, claim.epoch, error=gone, spend_attempt=True)
        folder = tmp_path / "results"
        folder.mkdir()
        (folder / "results.jsonl").write_text('{"row": 0}\n')
        succeed(service, evaluation, folder, METRICS)
        shown = send(service, "GET", url)
        assert shown["status"] == "succeeded"
        assert shown["results"]["metrics"] == METRICS
        assert shown["results"]["sampled"] == {
            **{"responses": 12, "graded": 10, "errors": 2, "mean": 0.5, "stderr": 0.25},
            **{"pass_rate": 0.4, "pass_rate_stderr": None},
        }
        assert (shown["results"]["greedy"]["mean"], shown["results"]["greedy"]["errors"]) == (None, 6)
        found: list[dict[str, Any]] = []
        while True:
            after = f"&after={found[-1]['id']}" if found else ""
            page = send(service, "GET", f"{url}/samples?limit=5{after}")
            found += page["data"]
            if not page["has_more"]:
                break
        assert [(one["row"], one["decoding"], one["answer"]) for one in found[:3]] == [
            (0, "sampled", 0),
            (0, "sampled", 1),
            (0, "greedy", None),
        ]
        assert [one["completion"] for one in found] == [str(index) for index in range(18)]
        assert (found[4]["reward"], found[4]["error"]) == (None, "other_error: no")
        greedy = send(service, "GET", f"{url}/samples?decoding=greedy&limit=100")["data"]
        assert [one["row"] for one in greedy] == list(range(6))
        for wrong in ("x", "-1", "1" * 20):
            assert send(service, "GET", f"{url}/samples?after={wrong}", 400)["error"]["param"] == "after"
        with service.http() as http:
            content = http.get(f"{url}/content")
        assert (content.status_code, json.loads(content.text)) == (200, {"row": 0})
        send(service, "DELETE", url)
        send(service, "GET", url, 404)
        send(service, "GET", f"{url}/samples", 404)
        assert [key for key in service.ctx.store.walk("checkpoints") if evaluation in key.key] == []

    def test_failed_and_cancelled_and_paused(self, service: Service, evaluation: str) -> None:
        url = f"{EVALUATIONS}/{evaluation}"
        send(service, "POST", f"{url}/resume")
        with service.ctx.db.transaction() as session:
            assert job_rows.get(session, DEFAULT_PROJECT, evaluation, Kind.EVALUATE)
        claim = service.claim(evaluation)
        service.finish(claim, "paused", JobError("disk_full", "no room"))
        paused = send(service, "GET", url)
        assert (paused["status"], paused["pause_reason"]["code"]) == ("paused", "disk_full")
        assert send(service, "POST", f"{url}/resume")["status"] == "queued"
        assert "cancel it before" in send(service, "DELETE", url, 400)["error"]["message"]
        service.finish(service.claim(evaluation), "failed", JobError("dataset_error", "line 1 is bad", "file"))
        failed = send(service, "GET", url)
        assert (failed["status"], failed["error"]["code"], failed["error"]["param"]) == (
            "failed",
            "dataset_error",
            "file",
        )
        message = send(service, "POST", f"{url}/cancel", 400)["error"]["message"]
        assert message.startswith(f"Evaluation {evaluation} has already failed")
        file = service.upload(service.rows()).json()["id"]
        other = send(service, "POST", EVALUATIONS, json={"model": "tiny", "file": file, "grader": GRADER})["id"]
        assert send(service, "POST", f"{EVALUATIONS}/{other}/cancel")["status"] == "cancelled"

    def test_lists_are_paged_and_filtered(self, service: Service, evaluation: str) -> None:
        file = service.upload(service.rows()).json()["id"]
        body = {"model": "tiny", "file": file, "grader": GRADER}
        more = [send(service, "POST", EVALUATIONS, json=body | {"metadata": {"n": str(n)}})["id"] for n in range(3)]
        send(service, "POST", f"{EVALUATIONS}/{more[0]}/cancel")
        seen: list[str] = []
        while True:
            after = f"&after={seen[-1]}" if seen else ""
            page = send(service, "GET", f"{EVALUATIONS}?limit=1{after}")
            seen += [one["id"] for one in page["data"]]
            if not page["has_more"]:
                break
        assert seen == [*reversed(more), evaluation]

        def ids(query: str) -> list[str]:
            return [one["id"] for one in send(service, "GET", f"{EVALUATIONS}?{query}")["data"]]

        assert ids("status=cancelled") == [more[0]]
        assert ids("metadata[n]=2") == [more[2]]
        assert ids("metadata=null") == [evaluation]
        assert ids("model=other") == []
        assert send(service, "GET", f"{EVALUATIONS}?status=lost", 400)["error"]["param"] == "status"
        assert send(service, "GET", f"{EVALUATIONS}?after={new_id('fteval-')}", 400)["error"]["param"] == "after"
        assert send(service, "GET", "/v1/fine_tuning/jobs")["data"] == []
        send(service, "GET", f"/v1/fine_tuning/jobs/{evaluation}", 404)
        send(service, "GET", f"{EXPORTS}/{evaluation}", 404)


class TestExport:
    """Asking for one, and its files."""

    def test_from_request_to_files_to_nothing(
        self, service: Service, checkpoint: tuple[dict[str, Any], str], tmp_path: Path
    ) -> None:
        job, checkpoint_id = checkpoint
        start = f"/v1/fine_tuning/checkpoints/{checkpoint_id}"
        made = send(service, "POST", f"{start}/export", json={"dtype": "float16"})
        assert (made["object"], made["status"], made["content"]) == ("fine_tuning.export", "queued", "merged")
        assert (made["checkpoint"], made["base_model"], made["dtype"]) == (checkpoint_id, "tiny", "float16")
        url = f"{EXPORTS}/{made['id']}"
        for path in ("files", "files/model.safetensors", "content"):
            send(service, "GET", f"{url}/{path}", 404)
        assert send(service, "DELETE", start, 400)["error"]["code"] == "checkpoint_in_use"
        folder = tmp_path / "export"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        succeed(service, made["id"], folder, {})
        shown = send(service, "GET", url)
        assert (shown["status"], shown["bytes"]) == ("succeeded", 4)
        (file,) = send(service, "GET", f"{url}/files")["data"]
        assert (file["path"], file["kind"], file["bytes"]) == ("model.safetensors", "weights", 4)
        with service.http() as http:
            one = http.get(f"{url}/files/model.safetensors", headers={"range": "bytes=1-2"})
            whole = http.get(f"{url}/content")
            assert (one.status_code, one.content, one.headers["x-checksum-sha256"]) == (206, b"al", file["sha256"])
            assert http.get(f"{url}/files/other").status_code == 404
        with tarfile.open(fileobj=io.BytesIO(whole.content)) as tar:
            assert [member.name for member in tar] == [f"{made['id']}/model.safetensors"]
        service.finish(self._claim(service, job["id"]), "failed", JobError("nan", "broke"))
        send(service, "DELETE", f"/v1/fine_tuning/jobs/{job['id']}")
        send(service, "GET", url, 404)
        assert list(service.ctx.store.walk("checkpoints")) == [], "its files went with the job's"

    def test_an_export_outlives_its_checkpoint_but_goes_when_told(
        self, service: Service, checkpoint: tuple[dict[str, Any], str], tmp_path: Path
    ) -> None:
        made = send(service, "POST", f"/v1/fine_tuning/checkpoints/{checkpoint[1]}/export")
        folder = tmp_path / "export"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        succeed(service, made["id"], folder, {})
        send(service, "DELETE", f"{EXPORTS}/{made['id']}")
        assert [key.key for key in service.ctx.store.walk("checkpoints") if made["id"] in key.key] == []
        assert send(service, "GET", EXPORTS)["data"] == []
        assert send(service, "GET", f"/v1/fine_tuning/checkpoints/{checkpoint[1]}")["id"] == checkpoint[1]

    def test_what_is_wrong_is_said(self, service: Service, checkpoint: tuple[dict[str, Any], str]) -> None:
        url = f"/v1/fine_tuning/checkpoints/{checkpoint[1]}/export"
        assert error_of(service, url, {"content": "adapter"}) == ("checkpoint_without_adapter", "content")
        assert error_of(service, url, {"dtype": "int8"}) == ("invalid_value", "dtype")
        for destination in ({"type": "hub", "repo": "me/mine"}, "s3://bucket/key"):
            expected = ("unsupported_destination", "destination")
            assert error_of(service, url, {"destination": destination}) == expected
        assert error_of(service, url, {"colour": 1}) == ("unknown_parameter", "colour")
        missing = send(service, "POST", "/v1/fine_tuning/checkpoints/ftckpt_0/export", 404, json={})
        assert missing["error"]["param"] == "id"
        headers = {"idempotency-key": "once"}
        ids = {send(service, "POST", url, json={}, headers=headers)["id"] for _ in range(2)}
        assert len(ids) == 1
        send(service, "POST", f"{EXPORTS}/{ids.pop()}/cancel")

    @staticmethod
    def _claim(service: Service, job_id: str) -> Claim:
        """The claim of the job's running attempt, as its worker has it."""
        row = job_row(service, job_id)
        return Claim(job_id, row.project_id, row.epoch, row.recipe, "tiny", "", None, None, 0, 0, 1, False)
