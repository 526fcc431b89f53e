"""Validating and estimating create requests over HTTP: everything that is wrong at once, and nothing is made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from openai import OpenAI

from jobs.repositories import workers
from jobs.resources import Slot
from jobs.tables import Attempt
from tests.api.test_metrics import tell
from tests.service import Service

URL = "/v1/fine_tuning/jobs"


@pytest.fixture
def service(start_service: Callable[..., Service], database_url: str, tmp_path: Path) -> Service:
    """A service on each database, with a model that tells its shape."""
    service = start_service(database_url=database_url)
    config = {"d_model": 16, "n_layers": 2, "embedding_size": 40, "torch_dtype": "float32"}
    (tmp_path / "models" / "tiny" / "config.json").write_text(json.dumps(config))
    (tmp_path / "models" / "tiny" / "model.safetensors").write_bytes(bytes(4000))
    return service


def post(service: Service, path: str, body: dict[str, Any]) -> Any:
    """The answer, by the openai client as for any path it has no method for."""
    client = OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0)
    with client:
        return client.post(f"/fine_tuning/jobs/{path}", body=body, cast_to=object)


def count(service: Service) -> int:
    with service.http() as http:
        return len(http.get(URL).json()["data"])


class TestValidate:
    def test_a_right_one_shows_what_create_would(self, service: Service) -> None:
        body = service.body(training_file=service.upload(service.rows()).json()["id"], seed=3)
        found = post(service, "validate", body)
        assert (found["valid"], found["problems"], count(service)) == (True, [], 0)
        assert [note["level"] for note in found["grader"]] == ["info"]
        assert "Grader 'same' on the first 3 rows of the training_file" in found["grader"][0]["message"]
        job = service.create(**body)
        assert (found["method"], found["total_steps"]) == (job["method"], job["rl"]["total_steps"])

    def test_it_finds_whatever_create_refuses_and_says_it_alike(self, service: Service) -> None:
        """One fault at a time: the same message, param and code."""
        good = service.upload(service.rows()).json()["id"]
        few = service.upload(service.rows(9)).json()["id"]
        unfit = service.upload(service.rows().replace(b'"answer"', b'"solution"')).json()["id"]
        block = service.body()["method"]["reinforcement"]

        def rl(**hyper: Any) -> dict[str, Any]:
            return {"method": {"type": "reinforcement", "reinforcement": block | {"hyperparameters": hyper}}}

        wrong: list[dict[str, Any]] = [
            {"model": "gpt"},
            {"training_file": "file-none"},
            {"training_file": few},
            {"training_file": unfit},
            {"validation_file": unfit},
            {"method": {"type": "supervised"}},
            {"method": {"type": "reinforcement"}},
            {"nope": 1},
            {"metadata": {"a": 1}},
            {"rl": {"dry_run": True}},
            {"rl": {"resources": {"gpus": 99}}},
            {"rl": {"webhook_url": "https://example.com"}},
            {"rl": {"eval": {"answers": 2}}},
            {"rl": {"on_grader_error": "fail", "max_error_rate": 0.1}},
            rl(n_epochs=1, max_steps=2),
            rl(learning_rate=1e-3, learning_rate_multiplier=2.0),
            rl(block_length=7, max_completion_length=16),
            rl(eval_interval=3),
            rl(foo=1),
        ]
        with service.http() as http:
            for changes in wrong:
                body = service.body(training_file=good) | changes
                refused = http.post(URL, json=body)
                assert refused.status_code in (400, 404), (changes, refused.text)
                error = {name: refused.json()["error"][name] for name in ("message", "param", "code")}
                found = post(service, "validate", body)
                assert (found["valid"], found["method"]) == (False, None)
                assert error in found["problems"], (changes, found["problems"])
        assert count(service) == 0

    def test_all_problems_at_once(self, service: Service) -> None:
        body = service.body(training_file="file-none", model="gpt", validation_file=None)
        body["method"]["reinforcement"]["hyperparameters"] = {"n_epochs": 1, "max_steps": 2, "eval_interval": 3}
        body["rl"] = {"resources": {"gpus": 99}, "eval": {"answers": 3}, "webhook_url": "https://example.com"}
        params = [problem["param"] for problem in post(service, "validate", body)["problems"]]
        hyper = "method.reinforcement.hyperparameters"
        expected = {"model", "training_file", "rl.resources.gpus", "rl.webhook_url", "rl.eval.answers"}
        assert set(params) == expected | {f"{hyper}.n_epochs", f"{hyper}.eval_interval"}
        assert len(params) == len(set(params))

    def test_a_body_of_another_shape_has_its_model_and_files_checked(self, service: Service) -> None:
        body = {"model": "gpt", "training_file": "file-none", "seed": "one", "suffix": "", "nope": 1}
        problems = post(service, "validate", body)["problems"]
        found = {(problem["param"], problem["code"]) for problem in problems}
        assert found == {
            ("seed", "invalid_value"),
            ("suffix", "invalid_value"),
            ("nope", "unknown_parameter"),
            ("model", "model_not_found"),
            ("training_file", "invalid_training_file"),
        }
        assert {problem["param"] for problem in post(service, "validate", {})["problems"]} == {"model", "training_file"}

    def test_a_quota_is_a_problem(self, start_service: Callable[..., Service], tmp_path: Path) -> None:
        service = start_service(home=tmp_path / "other", max_queued_jobs=1)
        service.create()
        body = service.body(training_file=service.upload(service.rows()).json()["id"])
        assert [problem["code"] for problem in post(service, "validate", body)["problems"]] == ["insufficient_quota"]


class TestEstimate:
    def body(self, service: Service, **changes: Any) -> dict[str, Any]:
        body = service.body(training_file=service.upload(service.rows()).json()["id"])
        rollout = {"max_completion_length": 8, "block_length": 4, "diffusion_steps": 4, "micro_batch": 1}
        sizes = {"batch_size": 4, "group_size": 2, "mc_samples": 3, "max_steps": 10}
        body["method"]["reinforcement"]["hyperparameters"] = rollout | sizes
        return body | changes

    def test_counts(self, service: Service) -> None:
        found = post(service, "estimate", self.body(service))
        assert (found["steps"], found["optimizer_steps"]) == ({"low": 10, "high": 10},) * 2
        assert found["prompt_tokens"] == {"low": 0, "high": 5}  # "2 + 2": from a sixth of a token a character to one
        assert found["generated_tokens"] == {"low": 10 * 8 * 8, "high": 10 * 8 * 8}
        assert found["judge_calls"] == {"low": 0, "high": 0}
        size = 4000 + len((service.ctx.settings.model_root / "tiny" / "config.json").read_bytes())
        assert found["disk_bytes"] == len(service.rows()) + 2 * 3 * size
        assert found["peak_memory_bytes"]["low"] >= 16 * 1000
        assert found["queue"] == {
            "position": 1,
            "running": 0,
            "workers": 0,
            "wait_seconds": {"range": None, "basis": "unknown", "attempts": 0},
        }
        assert count(service) == 0

    def test_time_by_formula_and_then_by_what_was_done(self, service: Service) -> None:
        """The rate of one attempt, worked by hand: 5 steps of 8 answers in 50 seconds, 13 tokens each."""
        body = self.body(service)
        first = post(service, "estimate", body | {"rl": {"resources": {"gpu_type": "h100"}}})["gpu_seconds"]
        assert (first["basis"], first["attempts"]) == ("formula", 0)
        claim = service.claim(service.create(**body)["id"])
        for step in range(1, 6):
            tell(service, claim, step, loss=1.0)
        with service.http() as http:
            http.post(f"{URL}/{claim.job_id}/cancel")
        service.finish(claim, "cancelled")
        with service.ctx.db.transaction() as session:
            session.execute(sa.update(Attempt).values(started_at=1000.0, ended_at=1050.0))
        found = post(service, "estimate", body)["gpu_seconds"]
        assert (found["basis"], found["attempts"]) == ("finished_attempts", 1)
        # Ten such steps take 100 seconds; the prompts may be shorter than those of the attempt are taken to be.
        per_answer = 3 * 3 + 4
        low = 10 * 8 * (5 / 6 + 8) * per_answer / (5 * 8 * 13 * per_answer / 50 * 1.3)
        assert found["range"]["low"] == pytest.approx(low, abs=1)
        assert found["range"]["high"] == pytest.approx(130, abs=1)
        other = post(service, "estimate", body | {"rl": {"resources": {"gpu_type": "h100"}}})["gpu_seconds"]
        assert other == first  # nothing was ever done on one

    def test_the_queue(self, service: Service) -> None:
        service.create()
        service.create(rl={"priority": "high"})
        with service.ctx.db.transaction() as session:
            workers.beat(session, Slot("w1"), pid=1, device="cpu", version="1")
            workers.beat(session, Slot("w2"), pid=2, device="cpu", version="1", state="busy")

        def queue(**rl: Any) -> dict[str, Any]:
            found: dict[str, Any] = post(service, "estimate", self.body(service, rl=rl))["queue"]
            return found

        assert (queue()["position"], queue()["workers"]) == (3, 2)
        assert (queue(priority="high")["position"], queue(priority="low")["position"]) == (2, 3)
        assert queue(resources={"gpus": 2})["workers"] == 0
        assert queue()["wait_seconds"]["basis"] == "unknown"  # both ahead take the idle one, and nothing ever ran

    def test_a_checkpoint_is_a_model(self, service: Service, tmp_path: Path) -> None:
        plain = post(service, "estimate", self.body(service))
        (tmp_path / "checkpoint").mkdir()
        (tmp_path / "checkpoint" / "model.safetensors").write_bytes(bytes(600))
        checkpoint = service.checkpoint(service.claim(service.create()["id"]), 2, tmp_path / "checkpoint")
        body = self.body(service, model=checkpoint)
        assert post(service, "validate", body)["valid"]
        found = post(service, "estimate", body)
        assert found["disk_bytes"] == plain["disk_bytes"] + 600
        assert found["peak_memory_bytes"] == plain["peak_memory_bytes"]

    def test_what_is_wrong_is_an_error_as_in_create(self, service: Service) -> None:
        with service.http() as http:
            for changes, status in (({"model": "gpt"}, 404), ({"training_file": "file-none"}, 400), ({"x": 1}, 400)):
                body = self.body(service) | changes
                created, estimated = http.post(URL, json=body), http.post(f"{URL}/estimate", json=body)
                assert created.json() == estimated.json()
                assert created.status_code == estimated.status_code == status
