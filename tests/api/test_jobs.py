"""Jobs over HTTP: creation and what is wrong with it, lists, wishes, and all that a job tells."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.repositories import events, metrics, samples
from jobs.repositories.jobs import JobError, set_phase
from jobs.services.messages import metrics_event

URL = "/v1/fine_tuning/jobs"


def error_of(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def everything(http: Any, url: str, **params: Any) -> list[dict[str, Any]]:
    """All objects of a list, page by page."""
    seen: list[dict[str, Any]] = []
    while True:
        page = http.get(url, params=params).json()
        seen += page["data"]
        if not page["has_more"]:
            return seen
        params["after"] = page["last_id"]


class TestCreate:
    def test_answers_with_a_complete_queued_job(self, service: Any) -> None:
        job = service.create(suffix="My/Run:1", seed=5, metadata={"team": "a"})
        assert job["id"].startswith("ftjob-")
        assert job["object"] == "fine_tuning.job"
        assert (job["status"], job["model"], job["seed"]) == ("queued", "tiny", 5)
        assert job["hyperparameters"] == {}
        assert job["method"]["reinforcement"]["hyperparameters"]["group_size"] == 8
        assert job["method"]["reinforcement"]["algorithm"] == "bgpo"
        for name in ("error", "finished_at", "estimated_finish", "fine_tuned_model", "trained_tokens", "integrations"):
            assert job[name] is None
        assert (job["result_files"], job["organization_id"]) == ([], "org-default")
        assert (job["metadata"], job["user_provided_suffix"]) == ({"team": "a"}, "My/Run:1")
        assert (job["rl"]["phase"], job["rl"]["total_steps"]) == ("waiting_for_gpu", 20)
        with service.http() as http:
            assert http.get(f"{URL}/{job['id']}").json() == job
            told = [event["message"] for event in everything(http, f"{URL}/{job['id']}/events")]
        tried = told.pop(1)
        about = "Grader 'same' on the first 3 rows of the training_file, with an empty answer: rewards 0, 0, 0"
        assert re.fullmatch(rf"{about} \([\d.e-]+ ms each\)", tried), tried
        assert told[::-1] == [
            f"Created fine-tuning job: {job['id']}",
            f"Validating training file: {job['training_file']}",
            "Files validated, moving job to queued state",
        ]

    def test_supervised(self, service: Any) -> None:
        file_id = service.upload(service.rows(answered=True)).json()["id"]
        job = service.create(method={"type": "supervised"}, training_file=file_id)
        assert set(job["hyperparameters"]) == {"n_epochs", "batch_size", "learning_rate_multiplier"}

    def test_dpo(self, service: Any) -> None:
        file_id = service.upload(service.preferences()).json()["id"]
        grader = service.body()["method"]["reinforcement"]["grader"]
        hyperparameters = {"beta": 0.2, "n_epochs": 3, "lora": {"rank": 4}, "eval_interval": 1}
        method = {"type": "dpo", "dpo": {"grader": grader, "hyperparameters": hyperparameters}}
        rl = {"early_stopping": {"patience": 2, "metric": "loss"}, "checkpointing": {"best_metric": "loss"}}
        rl |= {"on_grader_error": "zero"}
        job = service.create(method=method, training_file=file_id, validation_file=file_id, rl=rl)
        assert (job["status"], job["hyperparameters"]) == ("queued", {})
        shown = job["method"]["dpo"]
        assert (job["method"]["type"], shown["grader"]) == ("dpo", grader)
        resolved = shown["hyperparameters"]
        expected = {"beta": 0.2, "n_epochs": 4, "batch_size": 8, "mc_samples": 8, "estimator": "antithetic"}
        assert {name: resolved[name] for name in expected} == expected  # 36 rows are 5 batches of 8, 3.3 epochs
        assert resolved["lora"] == {"rank": 4, "alpha": 32.0, "targets": "all", "checkpoints": "merged"}
        assert job["rl"]["total_steps"] == 5
        assert job["rl"]["early_stopping"] == {"patience": 2, "min_delta": 0.0, "warmup_evals": 0, "metric": "loss"}
        assert job["rl"]["checkpointing"]["best_metric"] == "loss"
        assert (job["rl"]["on_grader_error"], job["rl"]["max_error_rate"]) == ("zero", 0.5)
        with service.http() as http:
            assert http.get(f"{URL}/{job['id']}").json() == job

    def test_early_stopping_is_success(self, service: Any, tmp_path: Path) -> None:
        file_id = service.upload(service.rows()).json()["id"]
        body = service.body(training_file=file_id, validation_file=file_id)
        rl = {"early_stopping": {"patience": 1}, "eval": {"interval": 1}}
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        for extensions, reason in ((rl, "early_stopping"), ({}, None)):
            job = service.create(**{name: body[name] for name in ("training_file", "validation_file")}, rl=extensions)
            claim = service.claim(job["id"])
            with service.ctx.db.transaction() as session:
                set_phase(session, claim.job_id, claim.epoch, "checkpointing", 7)
            service.checkpoint(claim, 7, tmp_path / "model", final=True)
            with service.http() as http:
                assert http.get(f"{URL}/{job['id']}").json()["rl"]["stop_reason"] is None
                service.finish(claim, "succeeded")
                done = http.get(f"{URL}/{job['id']}").json()
            assert (done["status"], done["rl"]["stop_reason"]) == ("succeeded", reason)
            assert (done["rl"]["step"], done["rl"]["total_steps"]) == (7, 20)

    @pytest.mark.parametrize(
        ("changes", "status", "param", "code"),
        [
            ({"model": "gpt"}, 404, "model", "model_not_found"),
            ({"model": "../tiny"}, 404, "model", "model_not_found"),
            ({"training_file": "file-none"}, 400, "training_file", "invalid_training_file"),
            ({"validation_file": "file-none"}, 400, "validation_file", "invalid_validation_file"),
            ({"method": {"type": "dpo", "dpo": {}}}, 400, "training_file", "invalid_training_file"),
            ({"method": {"type": "dpo", "dpo": {"beta": 1}}}, 400, "method.dpo.beta", "unknown_parameter"),
            ({"metadata": {"a": 1}}, 400, "metadata.a", "invalid_value"),
            ({"nope": 1}, 400, "nope", "unknown_parameter"),
        ],
    )
    def test_faults(self, service: Any, changes: dict[str, Any], status: int, param: str, code: str) -> None:
        body = service.body(training_file=service.upload(service.rows()).json()["id"]) | changes
        with service.http() as http:
            error = error_of(http.post(URL, json=body), status)
            assert (error["param"], error["code"]) == (param, code)
            assert http.get(URL).json()["data"] == []

    def test_an_unknown_hyperparameter_is_named(self, service: Any) -> None:
        body = service.body(training_file=service.upload(service.rows()).json()["id"])
        body["method"]["reinforcement"]["hyperparameters"]["foo"] = 1
        with service.http() as http:
            error = error_of(http.post(URL, json=body))
        assert error["param"] == "method.reinforcement.hyperparameters.foo"
        assert error["code"] == "unknown_parameter"
        assert "foo" in error["message"]

    @pytest.mark.parametrize("param", ["training_file", "validation_file"])
    def test_the_grader_must_fit_the_rows(self, service: Any, param: str) -> None:
        good = service.upload(service.rows()).json()["id"]
        other = service.upload(service.rows().replace(b'"answer"', b'"solution"')).json()["id"]
        body = service.body(training_file=good) | {param: other}
        with service.http() as http:
            error = error_of(http.post(URL, json=body))
        assert (error["param"], error["code"]) == ("method.reinforcement.grader", "invalid_grader")
        assert param in error["message"]
        assert "item.answer" in error["message"]

    def test_files_must_suit_the_method(self, service: Any) -> None:
        few = service.upload(service.rows(9)).json()["id"]
        answered = service.upload(service.rows(11) + service.rows(1, answered=True)).json()["id"]
        other = service.upload(b"x", purpose="batch").json()["id"]
        prompts = service.upload(service.rows()).json()["id"]
        with service.http() as http:

            def refused(**changes: Any) -> tuple[str, str, str]:
                error = error_of(http.post(URL, json=service.body(**changes)))
                return error["param"], error["code"], error["message"]

            assert refused(training_file=few)[:2] == ("training_file", "invalid_n_examples")
            assert refused(training_file=other)[:2] == ("training_file", "invalid_training_file")
            param, code, message = refused(training_file=answered)
            assert (param, code) == ("training_file", "invalid_training_file")
            assert "Line 12" in message
            param, code, message = refused(training_file=prompts, method={"type": "supervised"})
            assert "Line 1 " in message
            assert refused(training_file=prompts, validation_file=answered)[0] == "validation_file"
            mixed = service.upload(service.preferences(11) + service.rows(2)).json()["id"]
            pairs = service.upload(service.preferences()).json()["id"]
            dpo, grader = {"type": "dpo"}, service.body()["method"]["reinforcement"]["grader"]
            param, code, message = refused(training_file=mixed, method=dpo)
            assert (param, code) == ("training_file", "invalid_training_file")
            assert "Line 12 " in message
            assert "preferred_output" in message
            assert refused(training_file=pairs, validation_file=prompts, method=dpo)[0] == "validation_file"
            for method in (service.body()["method"], {"type": "supervised"}):
                message = refused(training_file=mixed, method=method)[2]
                assert "Line 1 " in message
                assert "needs messages" in message
            # Graded evaluations sample answers: to conversations and to the input of preferences.
            answers = service.upload(service.rows(answered=True)).json()["id"]
            for name, train in (("supervised", answers), ("dpo", pairs)):
                graded = {"type": name, name: {"grader": grader}}
                service.create(training_file=train, validation_file=mixed, method=graded)

    @pytest.mark.parametrize(
        ("content", "code"),
        [
            (b"{", "invalid_json"),
            (b"\xff", "invalid_json"),
            (b"[]", "invalid_value"),
            (b"", "missing_required_parameter"),
        ],
    )
    def test_bodies_that_are_no_object(self, service: Any, content: bytes, code: str) -> None:
        with service.http() as http:
            response = http.post(URL, content=content, headers={"content-type": "application/json"})
        assert error_of(response)["code"] == code

    def test_too_large_a_body(self, service: Any) -> None:
        def chunks() -> Any:
            for _ in range(60):
                yield b" " * 100_000

        headers = {"content-type": "application/json"}
        with service.http() as http:
            assert (
                error_of(http.post(URL, content=b" " * 6_000_000, headers=headers), 413)["code"] == "request_too_large"
            )
            assert error_of(http.post(URL, content=chunks(), headers=headers), 413)["code"] == "request_too_large"


class TestIdempotency:
    def test_the_same_key_gives_the_same_job(self, service: Any) -> None:
        body = service.body(training_file=service.upload(service.rows()).json()["id"])
        with service.http(headers={"idempotency-key": "k1"}) as http:
            first = http.post(URL, json=body).json()
            assert http.post(URL, json=body).json()["id"] == first["id"]
            response = http.post(URL, json=body | {"seed": 1})
            assert error_of(response, 409)["code"] == "idempotency_key_reused"
            assert response.headers["x-should-retry"] == "false"
            assert http.post(URL, json=body, headers={"idempotency-key": "k2"}).json()["id"] != first["id"]
            error_of(http.post(URL, json=body, headers={"idempotency-key": "k" * 256}))
            assert len(http.get(URL).json()["data"]) == 2

    def test_twins_at_the_same_time_make_one_job(self, service: Any) -> None:
        body = service.body(training_file=service.upload(service.rows()).json()["id"])
        made: list[str] = []
        barrier = threading.Barrier(6)

        def post() -> None:
            with service.http(headers={"idempotency-key": "k"}) as http:
                barrier.wait(20)
                made.append(http.post(URL, json=body).json()["id"])

        threads = [threading.Thread(target=post) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(made) == 6
        assert len(set(made)) == 1


class TestLists:
    def test_pages_and_filters(self, service: Any) -> None:
        file_id = service.upload(service.rows()).json()["id"]
        tags: list[dict[str, str] | None] = [None, {"a": "1"}, {"a": "1", "b": ""}, {"a": '"2"', "x.y $": "z"}, {}]
        made = [service.create(training_file=file_id, metadata=item)["id"] for item in tags]
        with service.http() as http:
            assert [job["id"] for job in everything(http, URL, limit=1)] == made[::-1]
            for params, expected in (
                ({"metadata[a]": "1"}, [2, 1]),
                ({"metadata[a]": "1", "metadata[b]": ""}, [2]),
                ({"metadata[a]": '"2"'}, [3]),
                ({"metadata[x.y $]": "z"}, [3]),
                ({"metadata[a]": "nope"}, []),
                ({"metadata[$.a]": "1"}, []),
                ({"metadata": "null"}, [4, 0]),
            ):
                found = [made.index(job["id"]) for job in http.get(URL, params=params).json()["data"]]
                assert found == expected, params
            assert error_of(http.get(URL, params={"metadata": "x"}))["param"] == "metadata"
            assert error_of(http.get(URL, params={"after": made[0][:-1] + "x"}))["param"] == "after"
            assert error_of(http.get(URL, params={"limit": 101}))["param"] == "limit"
            assert http.get(URL, params={"limit": 100}).json()["first_id"] == made[-1]

    @pytest.mark.parametrize("tail", ["", "/events", "/events/stream", "/checkpoints", "/metrics", "/samples"])
    def test_unknown_jobs(self, service: Any, tail: str) -> None:
        with service.http() as http:
            for job_id in ("ftjob-none", "ftjob-" + "0" * 32, "%00", "file-1"):
                assert error_of(http.get(f"{URL}/{job_id}{tail}"), 404)["param"] == "id"


class TestWishes:
    def test_cancel_and_what_follows(self, service: Any) -> None:
        job = service.create()
        with service.http() as http:
            for _ in range(2):
                cancelled = http.post(f"{URL}/{job['id']}/cancel").json()
                assert (cancelled["status"], cancelled["fine_tuned_model"]) == ("cancelled", None)
                assert isinstance(cancelled["finished_at"], int)
            for wish in ("pause", "resume"):
                response = http.post(f"{URL}/{job['id']}/{wish}")
                assert error_of(response)["code"] == "invalid_state"
                assert response.headers["x-should-retry"] == "false"

    def test_a_running_job_is_cancelled_at_once(self, service: Any) -> None:
        job = service.create()
        claim = service.claim(job["id"])
        with service.http() as http:
            cancelled = http.post(f"{URL}/{job['id']}/cancel").json()
            assert (cancelled["status"], cancelled["rl"]["phase"]) == ("cancelled", "cancelling")
            service.finish(claim, "succeeded")
            over = http.get(f"{URL}/{job['id']}").json()
            assert (over["status"], over["rl"]["phase"]) == ("cancelled", None)
            assert over["finished_at"] == cancelled["finished_at"]

    def test_pause_and_resume(self, service: Any) -> None:
        job = service.create()
        with service.http() as http:

            def wish(name: str) -> tuple[str, str | None]:
                shown = http.post(f"{URL}/{job['id']}/{name}").json()
                return shown["status"], shown["rl"]["phase"]

            assert wish("pause") == ("paused", None)
            assert wish("resume") == ("queued", "waiting_for_gpu")
            claim = service.claim(job["id"])
            assert wish("pause") == ("running", "pausing")
            assert wish("pause") == ("running", "pausing")
            assert error_of(http.post(f"{URL}/{job['id']}/resume"))["code"] == "invalid_state"
            service.finish(claim, "paused")
            assert wish("pause") == ("paused", None)
            assert wish("resume") == ("queued", "retrying")

    def test_wishes_for_unknown_jobs(self, service: Any) -> None:
        with service.http() as http:
            for wish in ("cancel", "pause", "resume"):
                error_of(http.post(f"{URL}/ftjob-none/{wish}"), 404)


def report(service: Any, claim: Any, step: int, value: float) -> None:
    """What a worker stores of one step."""
    with service.ctx.db.transaction() as session:
        key = (session, claim.job_id, claim.epoch)
        set_phase(*key, "training", step)
        metrics.upsert(*key, step, "train", {"reward_mean": value, "loss": -1.0})
        message, data = metrics_event(step, 20, "train", {"reward_mean": value, "loss": -1.0}, {"name": "g"})
        events.append(*key, "info", message, "metrics", data)
        samples.upsert(
            *key, step=step, split="train", index=0, prompt="p", completion="c", reward=value, scores={"g": value},
            error=None,
        )  # fmt: skip


class TestProgress:
    def test_what_a_run_tells(self, service: Any, tmp_path: Path) -> None:
        job = service.create()
        url = f"{URL}/{job['id']}"
        claim = service.claim(job["id"])
        for step in (1, 2, 3):
            report(service, claim, step, step / 4)
        with service.http() as http:
            shown = http.get(url).json()
            assert (shown["status"], shown["rl"]["phase"], shown["rl"]["step"]) == ("running", "training", 3)
            told = everything(http, f"{url}/events", limit=1)
            assert told[0]["message"] == "Step 3/20 , train mean reward=0.75"
            assert (told[0]["type"], told[0]["data"]["train_mean_reward"]) == ("metrics", 0.75)
            assert len(told) == 8
            assert len({event["id"] for event in told}) == 8
            series = http.get(f"{url}/metrics").json()["data"]
            assert series[0] == {"step": 1, "split": "train", "values": {"loss": -1.0, "reward_mean": 0.25}}
            params: dict[str, Any] = {"names": "reward_mean,x", "since_step": 2, "format": "csv"}
            answer = http.get(f"{url}/metrics", params=params)
            assert answer.headers["content-type"].startswith("text/csv")
            assert answer.text == "step,split,reward_mean\n2,train,0.5\n3,train,0.75\n"
            assert [row["step"] for row in everything(http, f"{url}/samples", limit=1)] == [3, 2, 1]
            rows = http.get(f"{url}/samples", params={"min_reward": 0.5}).json()["data"]
            assert [row["reward"] for row in rows] == [0.75, 0.5]
            assert error_of(http.get(f"{url}/samples", params={"after": "x"}))["param"] == "after"
        self._end(service, claim, tmp_path)

    def _end(self, service: Any, claim: Any, folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        service.checkpoint(claim, 20, folder / "model", final=True)
        service.finish(claim, "succeeded")
        with service.http() as http:
            job = http.get(f"{URL}/{claim.job_id}").json()
            assert job["status"] == "succeeded"
            name = job["fine_tuned_model"]
            assert name.startswith("ft:tiny:proj_default::")
            assert "/" not in name
            [checkpoint] = http.get(f"{URL}/{claim.job_id}/checkpoints").json()["data"]
            assert checkpoint["fine_tuned_model_checkpoint"] == f"{name}:ckpt-step-20"
            assert checkpoint["metrics"] == {"step": 20, "valid_reward_mean": 0.5, "sampled_reward_mean": 0.5}
            for model_id in (name, f"{name}:ckpt-step-20"):
                model = http.get(f"/v1/models/{model_id}").json()
                assert (model["id"], model["rl"]["checkpoint_id"]) == (model_id, checkpoint["id"])
            assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["tiny", name]

    def test_a_failed_job_says_why(self, service: Any) -> None:
        job = service.create()
        service.finish(service.claim(job["id"]), "failed", JobError("oom", "No memory.", detail="trace"))
        with service.http() as http:
            shown = http.get(f"{URL}/{job['id']}").json()
            assert (shown["status"], shown["fine_tuned_model"]) == ("failed", None)
            assert (shown["error"]["code"], shown["error"]["param"]) == ("oom", None)
            assert shown["error"]["message"].startswith("No memory. Lower batch_size")
            assert http.get(f"{URL}/{job['id']}/events").json()["data"][0]["level"] == "error"


class TestStream:
    def test_follows_and_resumes(self, service: Any) -> None:
        job = service.create()
        claim = service.claim(job["id"])
        with service.http() as http:
            ids: list[str] = []
            with http.stream("GET", f"{URL}/{job['id']}/events/stream") as stream:
                assert stream.headers["content-type"].startswith("text/event-stream")
                for line in stream.iter_lines():
                    if line.startswith("id: "):
                        ids.append(line.removeprefix("id: "))
                    if len(ids) == 4:
                        break
            report(service, claim, 1, 0.5)
            with service.ctx.db.transaction() as session:
                for i in range(300):  # more than a batch
                    events.append(session, claim.job_id, 1, "info", f"note {i}")
            service.finish(claim, "failed", JobError("oom", "No memory."))
            expected = [event["id"] for event in everything(http, f"{URL}/{job['id']}/events", limit=100)][::-1]
            for options in ({"headers": {"last-event-id": ids[-1]}}, {"params": {"after": ids[-1]}}):
                text = http.get(f"{URL}/{job['id']}/events/stream", **options).text
                found = [line.removeprefix("id: ") for line in text.splitlines() if line.startswith("id: ")]
                assert ids + found == expected
                data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
                assert data[-1] == "[DONE]"
                assert json.loads(data[0])["object"] == "fine_tuning.job.event"
            wrong = http.get(f"{URL}/{job['id']}/events/stream", params={"after": "ftevent-x"})
            assert error_of(wrong)["param"] == "after"

    def test_ends_when_the_job_is_cancelled(self, service: Any) -> None:
        job = service.create()
        service.claim(job["id"])
        with service.http() as http:
            http.post(f"{URL}/{job['id']}/cancel")
            text = http.get(f"{URL}/{job['id']}/events/stream").text
        assert text.rstrip().endswith("data: [DONE]")
        assert "Fine-tuning job cancelled" in text

    def test_does_not_keep_the_server_from_stopping(self, service: Any) -> None:
        job = service.create()
        with service.http() as http, http.stream("GET", f"{URL}/{job['id']}/events/stream") as stream:
            lines = stream.iter_lines()
            next(lines)
            service.server.stop()
            assert "[DONE]" not in "".join(lines)


def test_jobs_and_lists_on_postgresql(
    start_service: Callable[..., Any], new_postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    """The same service on the other database, in one go."""
    service = start_service(database_url=new_postgres_database())
    TestLists().test_pages_and_filters(service)
    TestIdempotency().test_twins_at_the_same_time_make_one_job(service)
    TestProgress().test_a_failed_job_says_why(service)
    with service.http() as http:
        for path in ("/v1/files/file-%00", "/v1/models/%00", f"{URL}/%00", f"{URL}?metadata[a]=%00"):
            assert http.get(path).status_code in (400, 404), path
