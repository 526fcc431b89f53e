"""Doing a job again: retry from its last checkpoint, clone with changes, and the record of its attempts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.repositories import attempts, checkpoints, jobs
from jobs.repositories.jobs import JobError
from jobs.services.clone import merge
from jobs.tables import Job

URL = "/v1/fine_tuning/jobs"
OOM = JobError("oom", "No memory.", phase="training", step=12, detail="Traceback: the end")


def error_of(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def stored(service: Any, job_id: str) -> Job:
    with service.ctx.db.read() as session:
        job: Job = session.get_one(Job, job_id)
        return job


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def on_both(start_service: Callable[..., Any], database_url: str) -> Any:
    """The service on each kind of database."""
    return start_service(database_url=database_url)


class TestRetry:
    def test_it_goes_on_from_the_last_checkpoint(self, on_both: Any, folder: Path) -> None:
        rl = {"priority": "low", "resources": {"gpus": 2, "max_runtime_s": 60}, "checkpointing": {"every_steps": 5}}
        source = on_both.create(suffix="s", seed=5, metadata={"a": "b"}, rl=rl)
        claim = on_both.claim(source["id"])
        for step in (5, 10):
            newest = on_both.checkpoint(claim, step, folder)
        on_both.finish(claim, "failed", OOM)
        with on_both.http() as http:
            body = {"rl": {"resources": {"max_runtime_s": 600}, "priority": "high"}}
            new = http.post(f"{URL}/{source['id']}/retry", json=body).json()
            assert http.get(f"{URL}/{new['id']}").json() == new
            assert http.get(f"{URL}/{source['id']}").json()["status"] == "failed"
            told = [event["message"] for event in http.get(f"{URL}/{new['id']}/events").json()["data"]]
        assert new["id"] != source["id"]
        assert (new["status"], new["rl"]["source_job"], new["rl"]["step"]) == ("queued", source["id"], 10)
        for name in ("model", "training_file", "method", "seed", "metadata", "user_provided_suffix"):
            assert new[name] == source[name], name
        assert new["rl"]["resources"] == {"gpus": 2, "gpu_type": None, "max_runtime_s": 600}
        assert new["rl"]["priority"] == "high"
        assert (new["error"], new["rl"]["failure"], new["rl"]["attempt"]) == (None, None, 0)
        assert f"Retries {source['id']}: continues from its step 10" in told
        again = on_both.claim(new["id"])
        assert (again.resume_checkpoint_id, again.last_step, again.trained) == (newest, 10, False)
        assert again.recipe == claim.recipe
        assert stored(on_both, new["id"]).tuned_model != stored(on_both, source["id"]).tuned_model
        # It writes checkpoints of its own, and a clone of it asks what it was asked.
        on_both.checkpoint(again, 10, folder)
        with on_both.http() as http:
            assert http.post(f"{URL}/{new['id']}/clone").json()["rl"]["resources"]["max_runtime_s"] == 600

    def test_without_a_checkpoint_it_starts_anew(self, service: Any) -> None:
        source = service.create()
        with service.http() as http:
            http.post(f"{URL}/{source['id']}/cancel")
            new = http.post(f"{URL}/{source['id']}/retry").json()
            assert (new["status"], new["rl"]["step"]) == ("queued", 0)
        assert stored(service, new["id"]).resume_checkpoint_id is None

    def test_a_damaged_and_a_final_checkpoint_are_no_start(self, on_both: Any, folder: Path) -> None:
        source = on_both.create()
        claim = on_both.claim(source["id"])
        good, damaged, _ = (on_both.checkpoint(claim, step, folder, final=step == 20) for step in (5, 10, 20))
        with on_both.ctx.db.transaction() as session:
            checkpoints.mark_damaged(session, damaged)
        with on_both.http() as http:
            http.post(f"{URL}/{source['id']}/cancel")
            new = http.post(f"{URL}/{source['id']}/retry").json()["id"]
            assert stored(on_both, new).resume_checkpoint_id == good
            # A retry of the retry, before that has a checkpoint of its own.
            http.post(f"{URL}/{new}/cancel")
            third = http.post(f"{URL}/{new}/retry").json()
        assert stored(on_both, third["id"]).resume_checkpoint_id == good
        assert third["rl"]["source_job"] == new

    def test_a_job_still_being_torn_down_is_cancelled_enough(self, service: Any) -> None:
        source = service.create()
        service.claim(source["id"])
        with service.http() as http:
            assert http.post(f"{URL}/{source['id']}/cancel").json()["rl"]["phase"] == "cancelling"
            assert http.post(f"{URL}/{source['id']}/retry").status_code == 200

    def test_only_failed_and_cancelled_jobs(self, service: Any, folder: Path) -> None:
        job_id = service.create()["id"]
        with service.http() as http:

            def refused(status: str) -> None:
                response = http.post(f"{URL}/{job_id}/retry")
                error = error_of(response)
                assert (error["code"], response.headers["x-should-retry"]) == ("invalid_state", "false")
                assert f"is {status}" in error["message"]

            refused("queued")
            http.post(f"{URL}/{job_id}/pause")
            refused("paused")
            http.post(f"{URL}/{job_id}/resume")
            claim = service.claim(job_id)
            refused("running")
            service.checkpoint(claim, 20, folder, final=True)
            service.finish(claim, "succeeded")
            refused("succeeded")
            for unknown in ("ftjob-none", "ftjob-" + "0" * 32):
                error_of(http.post(f"{URL}/{unknown}/retry"), 404)

    def test_the_recipe_stays_as_it_is(self, service: Any) -> None:
        job_id = service.create()["id"]
        with service.http() as http:
            http.post(f"{URL}/{job_id}/cancel")
            for body, param in (
                ({"seed": 1}, "seed"),
                ({"rl": {"checkpointing": {}}}, "rl.checkpointing"),
                ({"rl": {"resources": {"gpus": 0}}}, "rl.resources.gpus"),
                ({"rl": {"resources": {"gpus": 99}}}, "rl.resources.gpus"),
            ):
                assert error_of(http.post(f"{URL}/{job_id}/retry", json=body))["param"] == param

    def test_what_it_needs_may_be_gone(self, service: Any) -> None:
        job = service.create()
        with service.http() as http:
            http.post(f"{URL}/{job['id']}/cancel")
            assert http.delete(f"/v1/files/{job['training_file']}").status_code == 200
            error = error_of(http.post(f"{URL}/{job['id']}/retry"))
            assert (error["param"], error["code"]) == ("training_file", "invalid_training_file")
            (service.ctx.settings.model_root / "tiny" / "config.json").unlink()
            error = error_of(http.post(f"{URL}/{job['id']}/retry"), 404)
            assert (error["param"], error["code"]) == ("model", "model_not_found")

    def test_twins_make_one_job(self, on_both: Any) -> None:
        source = on_both.create()["id"]
        made: list[str] = []
        barrier = threading.Barrier(4)
        with on_both.http(headers={"idempotency-key": "k"}) as http:
            http.post(f"{URL}/{source}/cancel")

        def post() -> None:
            with on_both.http(headers={"idempotency-key": "k"}) as http:
                barrier.wait(20)
                made.append(http.post(f"{URL}/{source}/retry").json()["id"])

        threads = [threading.Thread(target=post) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert (len(made), len(set(made))) == (4, 1)
        with on_both.http(headers={"idempotency-key": "k"}) as http:
            for path, body in (("/retry", {"rl": {"priority": "low"}}), ("/clone", {})):
                response = http.post(f"{URL}/{source}{path}", json=body)
                assert error_of(response, 409)["code"] == "idempotency_key_reused"

    def test_its_checkpoint_stays_while_it_needs_it(self, on_both: Any, folder: Path) -> None:
        source = on_both.create()["id"]
        claim = on_both.claim(source)
        checkpoint = on_both.checkpoint(claim, 5, folder)
        on_both.finish(claim, "failed", OOM)
        assert list((on_both.ctx.settings.home / "artifacts").rglob("config.json"))
        with on_both.http() as http:
            new = http.post(f"{URL}/{source}/retry").json()["id"]
            url = f"/v1/fine_tuning/checkpoints/{checkpoint}"
            assert error_of(http.delete(url))["code"] == "checkpoint_in_use"
            http.post(f"{URL}/{new}/cancel")
            assert http.delete(url).json() == {
                "id": checkpoint,
                "object": "fine_tuning.job.checkpoint",
                "deleted": True,
            }
            error_of(http.get(url), 404)
            assert http.post(f"{URL}/{new}/retry").json()["rl"]["step"] == 0
        assert not list((on_both.ctx.settings.home / "artifacts").rglob("config.json"))


class TestClone:
    def test_the_same_request_with_changes(self, on_both: Any) -> None:
        source = on_both.create(metadata={"a": "1", "b": "2"}, rl={"priority": "low", "sample_log": 2})
        changes = {
            "method": {"reinforcement": {"hyperparameters": {"group_size": 16, "n_epochs": 2, "max_steps": None}}},
            "metadata": {"b": None, "c": "3"},
            "rl": {"sample_log": None, "priority": "high"},
            "suffix": "two",
        }
        with on_both.http() as http:
            new = http.post(f"{URL}/{source['id']}/clone", json=changes).json()
            told = [event["message"] for event in http.get(f"{URL}/{new['id']}/events").json()["data"]]
        assert (new["status"], new["rl"]["source_job"], new["rl"]["step"]) == ("queued", source["id"], 0)
        assert new["seed"] == source["seed"]
        assert new["method"]["reinforcement"]["hyperparameters"]["group_size"] == 16
        assert (source["rl"]["total_steps"], new["rl"]["total_steps"]) == (20, 2)  # 24 rows in batches of 16
        assert new["metadata"] == {"a": "1", "c": "3"}
        assert (new["rl"]["priority"], new["rl"]["sample_log"]) == ("high", 4)
        assert new["user_provided_suffix"] == "two"
        assert new["method"]["reinforcement"]["grader"] == source["method"]["reinforcement"]["grader"]
        assert f"Cloned from {source['id']}" in told

    @pytest.mark.parametrize("content", [None, b"", b"{}", b"null"])
    def test_without_changes_it_is_the_same_job(self, service: Any, content: bytes | None) -> None:
        source = service.create()
        with service.http() as http:
            response = http.post(
                f"{URL}/{source['id']}/clone", content=content, headers={"content-type": "application/json"}
            )
        new = response.json()
        for name in ("model", "training_file", "validation_file", "method", "seed", "metadata"):
            assert new[name] == source[name], name
        old, made = stored(service, source["id"]), stored(service, new["id"])
        assert old.recipe == made.recipe

    def test_a_seed_of_its_own(self, service: Any) -> None:
        source = service.create()
        with service.http() as http:
            assert http.post(f"{URL}/{source['id']}/clone", json={"seed": 7}).json()["seed"] == 7
            drawn = {http.post(f"{URL}/{source['id']}/clone", json={"seed": None}).json()["seed"] for _ in range(3)}
        assert drawn != {source["seed"]}

    def test_everything_a_request_can_say_survives(self, service: Any) -> None:
        file_id = service.upload(service.rows()).json()["id"]
        check = service.body()["method"]["reinforcement"]["grader"]
        length = {
            "type": "string_check",
            "name": "b",
            "operation": "ilike",
            "input": "{{item.answer}}",
            "reference": "x",
        }
        grader = {"type": "multi", "name": "m", "graders": {"a": check, "b": length}, "calculate_output": "a + 0.5 * b"}
        hyperparameters = {
            "batch_size": "auto",
            "learning_rate_multiplier": 2,
            "lora": {"rank": 4},
            "eval_interval": 5,
            "max_steps": 30,
            "compute_multiplier": "auto",
            "reasoning_effort": None,
        }
        method = {
            "type": "reinforcement",
            "reinforcement": {"grader": grader, "algorithm": "spg", "hyperparameters": hyperparameters},
        }
        rl = {
            "eval": {"answers": 2},
            "checkpointing": {"best_metric": "sampled_reward_mean"},
            "early_stopping": {"patience": 3},
            "resources": {"gpu_type": "cpu", "max_runtime_s": 60.5},
        }
        source = service.create(
            method=method, training_file=file_id, validation_file=file_id, rl=rl, integrations=None, metadata={}
        )
        with service.http() as http:
            new = http.post(f"{URL}/{source['id']}/clone").json()
            for name in ("method", "metadata", "seed"):
                assert new[name] == source[name]
            assert stored(service, new["id"]).recipe == stored(service, source["id"]).recipe
            assert new["rl"]["resources"] == source["rl"]["resources"]
            again = http.post(f"{URL}/{new['id']}/clone").json()
            assert again["method"] == source["method"]

    @pytest.mark.parametrize(
        ("changes", "param", "code"),
        [
            ({"method": {"reinforcement": {"hyperparameters": {"foo": 1}}}}, None, "unknown_parameter"),
            ({"method": {"reinforcement": {"hyperparameters": {"group_size": 1}}}}, None, "invalid_value"),
            ({"model": None}, "model", "missing_required_parameter"),
            ({"training_file": "file-none"}, "training_file", "invalid_training_file"),
            ({"method": {"type": "supervised"}}, "method.reinforcement", "invalid_value"),
            ({"metadata": 3}, "metadata", "invalid_value"),
            ({"suffix": "\x00"}, None, "invalid_value"),
            ([], None, "invalid_value"),
        ],
    )
    def test_changes_are_checked_as_a_request_is(
        self, service: Any, changes: Any, param: str | None, code: str
    ) -> None:
        source = service.create()["id"]
        with service.http() as http:
            error = error_of(http.post(f"{URL}/{source}/clone", json=changes))
            assert error["code"] == code
            if param is not None:
                assert error["param"] == param
            elif isinstance(changes, dict) and "method" in changes:
                (name,) = changes["method"]["reinforcement"]["hyperparameters"]
                assert error["param"] == f"method.reinforcement.hyperparameters.{name}"
            assert len(http.get(URL).json()["data"]) == 1

    def test_an_absurd_depth(self, service: Any) -> None:
        source = service.create()["id"]
        with service.http() as http:
            for depth in (100, 900, 30_000):
                content = b'{"a":' * depth + b"1" + b"}" * depth
                response = http.post(
                    f"{URL}/{source}/clone", content=content, headers={"content-type": "application/json"}
                )
                error_of(response)

    def test_a_job_of_before_requests_were_kept(self, service: Any) -> None:
        source = service.create()["id"]
        with service.ctx.db.transaction() as session:
            session.get_one(Job, source).request = None
        with service.http() as http:
            assert "before requests were kept" in error_of(http.post(f"{URL}/{source}/clone"))["message"]
            http.post(f"{URL}/{source}/cancel")
            assert http.post(f"{URL}/{source}/retry").status_code == 200
            error_of(http.post(f"{URL}/ftjob-none/clone"), 404)

    def test_merge(self) -> None:  # the examples of RFC 7396
        for target, patch, expected in (
            ({"a": "b"}, {"a": "c"}, {"a": "c"}),
            ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
            ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
            ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
            ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
            ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
            ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ):
            assert merge(target, patch) == expected


class TestAttempts:
    def test_each_tells_where_it_ran_and_how_it_ended(self, on_both: Any) -> None:
        job_id = on_both.create()["id"]
        claim = on_both.claim(job_id)
        with on_both.ctx.db.transaction() as session:
            attempts.start(session, job_id, claim.epoch, pid=42, devices=["gpu-1", "gpu-2"], resumed_step=None)
            jobs.hand_back(session, job_id, claim.epoch, error=OOM, spend_attempt=True, signal=9)
        claim = on_both.claim(job_id)
        with on_both.ctx.db.transaction() as session:
            attempts.start(session, job_id, claim.epoch, pid=43, devices=["gpu-1"], resumed_step=10)
        url = f"{URL}/{job_id}/attempts"
        with on_both.http() as http:
            second, first = http.get(url).json()["data"]
            assert (first["id"], first["number"], first["worker"], first["devices"]) == (
                "1", 1, "worker-1", ["gpu-1", "gpu-2"],
            )  # fmt: skip
            assert (first["outcome"], first["exit_code"], first["signal"]) == ("queued", None, 9)
            assert first["error"] == {"code": "oom", "message": "No memory.", "phase": "training", "step": 12}
            assert first["ended_at"] >= first["started_at"]
            assert (second["outcome"], second["ended_at"], second["error"]) == (None, None, None)
            assert (first["resumed_step"], second["resumed_step"]) == (None, 10)
            page = http.get(url, params={"limit": 1}).json()
            assert (page["has_more"], page["last_id"]) == (True, "2")
            page = http.get(url, params={"limit": 1, "after": "2"}).json()
            assert (page["has_more"], page["first_id"]) == (False, "1")
            for after in ("3", "x", "-1"):
                assert error_of(http.get(url, params={"after": after}))["param"] == "after"
            error_of(http.get(f"{URL}/ftjob-none/attempts"), 404)

    def test_a_failed_job_has_a_failure_record(self, service: Any) -> None:
        job_id = service.create()["id"]
        service.finish(service.claim(job_id), "failed", OOM)
        with service.http() as http:
            job = http.get(f"{URL}/{job_id}").json()
        failure = job["rl"]["failure"]
        expected = {"code": "oom", "phase": "training", "step": 12, "log_tail": "Traceback: the end", "attempt": 1}
        assert {name: failure[name] for name in expected} == expected
        assert failure["message"] == job["error"]["message"]
        assert set(job["error"]) == {"code", "message", "param"}
