"""The unmodified `openai` client against the service: each call of the contract, and its surprises."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.pagination import SyncCursorPage
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

from jobs.repositories import events, metrics
from jobs.repositories.jobs import JobError


@pytest.fixture
def client(service: Any) -> Any:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def training_file(service: Any, client: Any, tmp_path: Path) -> str:
    path = tmp_path / "train.jsonl"
    path.write_bytes(service.rows())
    file_id: str = client.files.create(file=path, purpose="fine-tune").id
    return file_id


def test_files(service: Any, client: Any, training_file: str) -> None:
    file = client.files.retrieve(training_file)
    assert (file.object, file.purpose, file.status, file.filename) == ("file", "fine-tune", "processed", "train.jsonl")
    assert client.files.wait_for_processing(training_file).id == training_file
    assert client.files.content(training_file).content == service.rows()
    with pytest.warns(DeprecationWarning, match="content"):
        assert client.files.retrieve_content(training_file) == service.rows().decode()
    assert [item.id for item in client.files.list(purpose="fine-tune")] == [training_file]
    deleted = client.files.delete(training_file)
    assert (deleted.id, deleted.deleted) == (training_file, True)
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve(training_file)
    assert caught.value.request_id
    assert caught.value.param == "id"


def test_a_file_that_expires(service: Any, client: Any) -> None:
    kept = {"anchor": "created_at", "seconds": 3600}
    file = client.files.create(file=("a.txt", b"x"), purpose="user_data", expires_after=kept)
    assert file.expires_at - file.created_at == 3600
    assert client.files.retrieve(file.id).expires_at == file.expires_at
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(file=b"x", purpose="user_data", expires_after=kept | {"seconds": 60})
    assert caught.value.param == "expires_after[seconds]"


def test_a_file_in_parts(service: Any, client: Any, tmp_path: Path) -> None:
    content = service.rows(2000)
    path = tmp_path / "big.jsonl"
    path.write_bytes(content)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    for given in ({"file": path}, {"file": content, "filename": path.name, "bytes": len(content)}):
        upload = client.uploads.upload_file_chunked(
            mime_type="application/jsonl", purpose="fine-tune", part_size=50_000, md5=md5, **given
        )
        assert (upload.status, upload.object, upload.bytes) == ("completed", "upload", len(content))
        assert (upload.file.filename, upload.file.status) == ("big.jsonl", "processed")
        assert client.files.content(upload.file.id).content == content
    begun = client.uploads.create(bytes=9, filename="x", mime_type="text/plain", purpose="batch")
    part = client.uploads.parts.create(begun.id, data=b"abc")
    assert (part.object, part.upload_id) == ("upload.part", begun.id)
    with pytest.raises(openai.BadRequestError, match="come to 3 bytes"):
        client.uploads.complete(begun.id, part_ids=[part.id])
    assert client.uploads.cancel(begun.id).status == "cancelled"


def test_result_files(service: Any, client: Any, training_file: str, tmp_path: Path) -> None:
    job = client.fine_tuning.jobs.create(model="tiny", training_file=training_file, method=service.body()["method"])
    assert job.result_files == []
    claim = service.claim(job.id)
    with service.ctx.db.transaction() as session:
        for step in (1, 2):
            metrics.upsert(session, job.id, claim.epoch, step, "train", {"reward_mean": step / 4})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    service.checkpoint(claim, 20, tmp_path / "model", final=True)
    assert client.fine_tuning.jobs.retrieve(job.id).result_files == []
    service.finish(claim, "succeeded")
    table_id, lines_id = client.fine_tuning.jobs.retrieve(job.id).result_files
    assert {file.id for file in client.files.list(purpose="fine-tune-results")} == {table_id, lines_id}
    file = client.files.wait_for_processing(table_id)
    assert (file.filename, file.purpose, file.status) == ("step_metrics.csv", "fine-tune-results", "processed")
    text = "step,train_reward_mean\n1,0.25\n2,0.5\n"
    assert file.bytes == len(text)
    assert client.files.content(table_id).text == text
    encoded = client.files.content(table_id, extra_query={"encoding": "base64"}).read()
    assert base64.b64decode(encoded).decode() == text
    assert len(client.files.content(lines_id).text.splitlines()) == 2
    assert client.files.delete(lines_id).deleted
    assert client.fine_tuning.jobs.retrieve(job.id).result_files == [table_id, lines_id]
    client.delete(f"/fine_tuning/jobs/{job.id}", cast_to=object)
    assert list(client.files.list(purpose="fine-tune-results")) == []
    assert [path.name for path in service.ctx.settings.home.joinpath("artifacts", "files").iterdir()] == [training_file]


def test_a_job_from_creation_to_success(service: Any, client: Any, training_file: str, tmp_path: Path) -> None:
    method = service.body()["method"]
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=training_file, method=method, suffix="demo", metadata={"a": "b"}
    )
    assert (job.status, job.model, job.hyperparameters.to_dict()) == ("queued", "tiny", {})
    assert job.method.reinforcement.hyperparameters.batch_size == 16
    assert job.method.reinforcement.grader.to_dict()["operation"] == "eq"
    claim = service.claim(job.id)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for step in (10, 20):
        service.checkpoint(claim, step, tmp_path / "model", final=step == 20)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
    service.finish(claim, "succeeded")
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded"
    assert job.fine_tuned_model.startswith("ft:tiny:proj_default:demo:")
    assert client.models.retrieve(job.fine_tuned_model).owned_by == "proj_default"
    assert {model.id for model in client.models.list()} == {"tiny", job.fine_tuned_model}
    steps = [item.step_number for item in client.fine_tuning.jobs.checkpoints.list(job.id, limit=1)]
    assert steps == [20, 10]
    checkpoint = next(iter(client.fine_tuning.jobs.checkpoints.list(job.id)))
    assert checkpoint.fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-20"
    told = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=2)]
    assert told[0] == "The job has successfully completed"
    assert told[-1] == f"Created fine-tuning job: {job.id}"
    assert [item.id for item in client.fine_tuning.jobs.list(metadata={"a": "b"})] == [job.id]
    assert list(client.fine_tuning.jobs.list(metadata={"a": "c"})) == []


def test_a_preference_job(service: Any, client: Any, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(service.preferences())
    file_id = client.files.create(file=path, purpose="fine-tune").id
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 2, "batch_size": "auto"}}}
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file_id, method=method)
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.method.type == "dpo"
    hyperparameters = job.method.dpo.hyperparameters
    assert (hyperparameters.beta, hyperparameters.batch_size, hyperparameters.n_epochs) == (0.2, 8, 2)
    assert hyperparameters.learning_rate_multiplier == 1
    method["dpo"]["hyperparameters"]["lora"] = {"rang": 4}
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(model="tiny", training_file=file_id, method=method)
    assert (caught.value.code, caught.value.param) == ("unknown_parameter", "method.dpo.hyperparameters.lora.rang")


def test_wishes_have_empty_bodies(service: Any, client: Any, training_file: str) -> None:
    method = service.body()["method"]
    job = client.fine_tuning.jobs.create(model="tiny", training_file=training_file, method=method)
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.resume(job.id)
    assert caught.value.code == "invalid_state"


def test_a_job_is_asked_for_scheduled_and_done_again(
    service: Any, client: Any, training_file: str, tmp_path: Path
) -> None:
    rl = {"priority": "high", "resources": {"gpus": 2, "max_runtime_s": 60}, "checkpointing": {"every_steps": 5}}
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=training_file, method=service.body()["method"], extra_body={"rl": rl}
    )
    assert (job.rl["priority"], job.rl["resources"]["gpus"], job.rl["queue_position"]) == ("high", 2, 1)
    assert job.rl["wait_reason"]
    queue = client.get("/fine_tuning/queue", cast_to=object)
    assert [entry["job"] for entry in queue["waiting"]] == [job.id]
    claim = service.claim(job.id)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    service.checkpoint(claim, 5, tmp_path / "model")
    # Pausing a running job: it says running until its checkpoint is stored.
    assert client.fine_tuning.jobs.pause(job.id).status == "running"
    assert client.fine_tuning.jobs.retrieve(job.id).rl["phase"] == "pausing"
    service.finish(claim, "paused")
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    claim = service.claim(job.id)
    service.finish(claim, "failed", JobError("deadline", "60 s are over.", phase="rollout", step=7))
    failed = client.fine_tuning.jobs.retrieve(job.id)
    assert (failed.status, failed.error.code, failed.rl["failure"]["step"]) == ("failed", "deadline", 7)

    path = f"/fine_tuning/jobs/{job.id}"
    body = {"rl": {"resources": {"max_runtime_s": 600}}}
    retried = client.post(f"{path}/retry", body=body, cast_to=FineTuningJob)
    assert (retried.status, retried.rl["source_job"], retried.rl["step"]) == ("queued", job.id, 5)
    assert (retried.seed, retried.rl["resources"]["max_runtime_s"]) == (job.seed, 600)
    assert client.post(f"{path}/retry", cast_to=object)["status"] == "queued"  # an empty body
    assert client.post(f"{path}/clone", cast_to=object)["rl"]["step"] == 0
    changes = {"method": {"reinforcement": {"hyperparameters": {"group_size": 16}}}}
    cloned = client.post(f"{path}/clone", body=changes, cast_to=FineTuningJob)
    assert cloned.method.reinforcement.hyperparameters.group_size == 16
    assert cloned.rl["source_job"] == job.id
    changes["method"]["reinforcement"]["hyperparameters"] = {"group_sise": 16}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post(f"{path}/clone", body=changes, cast_to=object)
    assert caught.value.param == "method.reinforcement.hyperparameters.group_sise"
    with pytest.raises(openai.BadRequestError) as caught:
        client.post(f"/fine_tuning/jobs/{cloned.id}/retry", cast_to=object)
    assert caught.value.code == "invalid_state"
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(
            model="tiny", training_file=training_file, extra_body={"rl": {"webhook_url": "https://example.com"}}
        )
    assert caught.value.param == "rl.webhook_url"

    listed = {"page": SyncCursorPage[FineTuningJobEvent], "model": FineTuningJobEvent}
    attempts = client.get_api_list(f"{path}/attempts?limit=1", **listed)
    assert [attempt.outcome for attempt in attempts] == ["failed", "paused"]
    checkpoint = next(iter(client.fine_tuning.jobs.checkpoints.list(job.id)))
    assert (checkpoint.rl["pinned"], checkpoint.rl["best"]) == (False, False)
    url = f"/fine_tuning/checkpoints/{checkpoint.id}"
    assert client.patch(url, body={"pinned": True}, cast_to=object)["rl"]["pinned"] is True
    with pytest.raises(openai.BadRequestError, match="pinned"):
        client.delete(url, cast_to=object)


def test_a_full_queue_is_not_tried_again(start_service: Callable[..., Any]) -> None:
    service = start_service(max_queued_jobs=1)
    file_id = service.upload(service.rows()).json()["id"]
    service.create(training_file=file_id)
    requests: list[str] = []
    http = httpx2.Client(event_hooks={"request": [lambda request: requests.append(request.url.path)]}, trust_env=False)
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=2, http_client=http) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            client.fine_tuning.jobs.create(model="tiny", training_file=file_id, method=service.body()["method"])
        assert (caught.value.code, caught.value.type) == ("insufficient_quota", "insufficient_quota")
        assert caught.value.request_id
        job = next(iter(client.fine_tuning.jobs.list()))
        with pytest.raises(openai.BadRequestError):
            client.post(f"/fine_tuning/jobs/{job.id}/retry", cast_to=object)
    posted = [path for path in requests if path.endswith(("/jobs", "/retry"))]
    assert posted == ["/v1/fine_tuning/jobs", "/v1/fine_tuning/jobs", f"/v1/fine_tuning/jobs/{job.id}/retry"]


def test_errors_carry_all_their_parts(service: Any, client: Any, training_file: str) -> None:
    method = service.body()["method"]
    method["reinforcement"]["hyperparameters"]["foo"] = 1
    with pytest.raises(openai.BadRequestError) as caught:
        client.fine_tuning.jobs.create(model="tiny", training_file=training_file, method=method)
    error = caught.value
    assert (error.code, error.param) == ("unknown_parameter", "method.reinforcement.hyperparameters.foo")
    assert error.type == "invalid_request_error"
    assert "foo" in str(error)
    with pytest.raises(openai.NotFoundError) as missing:
        client.fine_tuning.jobs.create(model="gpt", training_file=training_file)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="line 1 "):
        client.files.create(file=b"{", purpose="fine-tune")


def test_a_file_too_large(service: Any, client: Any) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.files.create(file=b"x" * 538_000_000, purpose="batch")
    assert (caught.value.status_code, caught.value.code) == (413, "file_too_large")


def test_extensions_are_callable(service: Any, client: Any, training_file: str) -> None:
    method = service.body()["method"]
    extra = {"rl": {"checkpointing": {"every_steps": 7}}}
    job = client.fine_tuning.jobs.create(model="tiny", training_file=training_file, method=method, extra_body=extra)
    assert job.rl["checkpointing"]["every_steps"] == 7
    claim = service.claim(job.id)
    with service.ctx.db.transaction() as session:
        events.append(session, job.id, claim.epoch, "info", "note")
    service.finish(claim, "failed", JobError("oom", "No memory."))
    path = f"/fine_tuning/jobs/{job.id}"
    assert client.get(f"{path}/metrics", cast_to=object) == {"object": "list", "data": [], "has_more": False}
    stream = client.get(
        f"{path}/events/stream", cast_to=FineTuningJobEvent, stream=True, stream_cls=openai.Stream[FineTuningJobEvent]
    )
    streamed = [event.id for event in stream]
    assert streamed[::-1] == [event.id for event in client.fine_tuning.jobs.list_events(job.id)]
    assert client.fine_tuning.jobs.retrieve(job.id).error.code == "oom"
