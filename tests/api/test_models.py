"""Models of all kinds: the catalog, tuned models and checkpoints, deleting them, and starting jobs from them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import openai
import pytest

from jobs.errors import NotFound
from jobs.repositories import checkpoints
from jobs.services import tuned_models

URL = "/v1/fine_tuning/jobs"
LORA = {"rank": 2, "checkpoints": "adapter"}


@pytest.fixture
def tuned(service: Any, tmp_path: Path) -> dict[str, str]:
    """A succeeded job: its id, the name of its model, and its checkpoint by id and name."""
    return finished(service, service.create()["id"], tmp_path / "made")


def finished(service: Any, job_id: str, folder: Path) -> dict[str, str]:
    """End a job as its worker does."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    claim = service.claim(job_id)
    checkpoint_id = service.checkpoint(claim, 20, folder, final=True)
    service.finish(claim, "succeeded")
    with service.http() as http:
        name = http.get(f"{URL}/{job_id}").json()["fine_tuned_model"]
    return {"job": job_id, "model": name, "checkpoint": checkpoint_id, "checkpoint_name": f"{name}:ckpt-step-20"}


def error(answer: Any) -> tuple[int, str, str | None]:
    found = answer.json()["error"]
    return answer.status_code, found["code"], found["param"]


def test_a_model_is_found_by_any_of_its_names(service: Any, tuned: dict[str, str]) -> None:
    with service.http() as http:
        shown = http.get(f"/v1/models/{tuned['model']}").json()
        assert shown["rl"] == {"base_model": "tiny", "job_id": tuned["job"], "checkpoint_id": tuned["checkpoint"]}
        assert shown["owned_by"] == "proj_default"
        for name in ("checkpoint", "checkpoint_name"):
            found = http.get(f"/v1/models/{tuned[name]}").json()
            assert (found["id"], found["rl"]) == (tuned["checkpoint_name"], shown["rl"])
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["tiny", tuned["model"]]


def test_a_deleted_model_has_no_name_any_more(service: Any, tuned: dict[str, str]) -> None:
    url = f"/v1/fine_tuning/checkpoints/{tuned['checkpoint']}"
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
        assert client.models.delete(tuned["model"]).to_dict() == {
            "id": tuned["model"],
            "object": "model",
            "deleted": True,
        }
        with pytest.raises(openai.NotFoundError) as gone:
            client.models.retrieve(tuned["model"])
        assert gone.value.code == "model_not_found"
        assert [model.id for model in client.models.list()] == ["tiny"]
    with service.http() as http:
        assert error(http.delete(f"/v1/models/{tuned['model']}")) == (404, "model_not_found", "model")
        job = http.get(f"{URL}/{tuned['job']}").json()
        assert (job["status"], job["fine_tuned_model"]) == ("succeeded", tuned["model"]), "what happened stays so"
        assert http.get(f"/v1/models/{tuned['checkpoint']}").status_code == 200, "the checkpoint is still there"
        assert http.delete(url).json()["deleted"], "and can be deleted now"
        assert error(http.get(f"/v1/models/{tuned['checkpoint']}")) == (404, "model_not_found", "model")


def test_the_result_of_a_job_cannot_be_deleted_before_its_name(service: Any, tuned: dict[str, str]) -> None:
    with service.http() as http:
        answer = http.delete(f"/v1/fine_tuning/checkpoints/{tuned['checkpoint']}")
    assert error(answer) == (400, "checkpoint_in_use", "id")


def test_base_models_and_checkpoints_are_not_deleted_as_models(service: Any, tuned: dict[str, str]) -> None:
    with service.http() as http:
        assert error(http.delete("/v1/models/tiny")) == (403, "insufficient_permissions", "model")
        assert error(http.delete(f"/v1/models/{tuned['checkpoint']}")) == (400, "model_is_checkpoint", "model")
        for name in ("..%2F..%2Ftiny", "none", "%00", "a%2Fb"):
            assert error(http.delete(f"/v1/models/{name}")) == (404, "model_not_found", "model")
        assert http.get("/v1/models/tiny").status_code == 200


@pytest.mark.parametrize("kind", ["model", "checkpoint", "checkpoint_name"])
def test_a_job_starts_from_a_tuned_model(service: Any, tuned: dict[str, str], kind: str) -> None:
    job = service.create(model=tuned[kind], suffix="more")
    assert job["model"] == tuned[kind], "as the request named it"
    origin = {"model": tuned[kind], "checkpoint": tuned["checkpoint"], "job": tuned["job"], "step": 20}
    assert job["rl"]["base"] == {"model": "tiny", "checkpoint": tuned["checkpoint"], "lineage": [origin]}
    claim = service.claim(job["id"])
    assert (claim.model, claim.start_checkpoint_id) == ("tiny", tuned["checkpoint"])


def test_the_lineage_goes_back_to_the_base_model(service: Any, tuned: dict[str, str], tmp_path: Path) -> None:
    second = finished(service, service.create(model=tuned["model"])["id"], tmp_path / "made")
    third = service.create(model=second["model"])
    assert second["model"].startswith("ft:tiny:")
    assert third["rl"]["base"]["model"] == "tiny"
    assert [origin["job"] for origin in third["rl"]["base"]["lineage"]] == [second["job"], tuned["job"]]
    with service.http() as http:
        assert http.get(f"/v1/models/{second['model']}").json()["rl"]["base_model"] == "tiny"


def test_a_base_model_is_its_own_base(service: Any) -> None:
    assert service.create()["rl"]["base"] == {"model": "tiny", "checkpoint": None, "lineage": []}


def test_what_a_job_starts_from_cannot_be_deleted(service: Any, tuned: dict[str, str]) -> None:
    job = service.create(model=tuned["model"])
    url = f"/v1/fine_tuning/checkpoints/{tuned['checkpoint']}"
    with service.http() as http:
        assert http.delete(f"/v1/models/{tuned['model']}").status_code == 200
        assert error(http.delete(url)) == (400, "checkpoint_in_use", "id")
        http.post(f"{URL}/{job['id']}/cancel")
        assert http.delete(url).status_code == 200
        retried = http.post(f"{URL}/{job['id']}/retry")
        assert error(retried) == (400, "invalid_model", "model")
        assert "was deleted" in retried.json()["error"]["message"]
        assert error(http.post(f"{URL}/{job['id']}/clone")) == (404, "model_not_found", "model")


def test_a_retry_starts_from_the_same_weights(service: Any, tuned: dict[str, str]) -> None:
    job = service.create(model=tuned["model"])
    with service.http() as http:
        http.post(f"{URL}/{job['id']}/cancel")
        again = http.post(f"{URL}/{job['id']}/retry").json()
    assert (again["model"], again["rl"]["base"]) == (job["model"], job["rl"]["base"])


def test_models_that_jobs_cannot_start_from(service: Any, tuned: dict[str, str]) -> None:
    body = service.body(training_file=service.upload(service.rows()).json()["id"])
    with service.http() as http:
        for name in ("none", "ft:tiny:proj_default::000000000000", "ftckpt_" + "0" * 32, "../tiny"):
            assert error(http.post(URL, json=body | {"model": name})) == (404, "model_not_found", "model")
        with service.ctx.db.transaction() as session:
            checkpoints.mark_damaged(session, tuned["checkpoint"])
        assert error(http.post(URL, json=body | {"model": tuned["model"]})) == (400, "checkpoint_damaged", "model")


def test_an_adapter_alone_needs_a_base_model(service: Any, tuned: dict[str, str]) -> None:
    body = service.body(model=tuned["model"], training_file=service.upload(service.rows()).json()["id"])
    body["method"]["reinforcement"]["hyperparameters"]["lora"] = LORA
    param = "method.reinforcement.hyperparameters.lora.checkpoints"
    with service.http() as http:
        assert error(http.post(URL, json=body)) == (400, "invalid_value", param)
        assert http.post(URL, json=body | {"model": "tiny"}).status_code == 200


def test_the_catalog_describes_base_models(service: Any, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "other"
    folder.mkdir()
    config = {"model_type": "llada", "max_sequence_length": 4096, "vocab_size": 320, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    header = {"a": {"dtype": "BF16", "shape": [3, 5], "data_offsets": [0, 30]}, "__metadata__": {"format": "pt"}}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(30))
    with service.http() as http:
        found = http.get("/v1/base_models").json()["data"]
        other = http.get("/v1/base_models/other").json()
        assert error(http.get("/v1/base_models/none")) == (404, "model_not_found", "model")
        assert error(http.get("/v1/base_models/..%2Fother")) == (404, "model_not_found", "model")
    assert [model["id"] for model in found] == ["other", "tiny"]
    assert found[0] == other
    wanted = {"architecture": "llada", "context_length": 4096, "parameters": 15, "dtype": "bfloat16", "vocabulary": 320}
    assert {name: other[name] for name in wanted} == wanted
    assert other["memory"]["inference_bfloat16"] == 30
    assert "bgpo" in other["algorithms"]
    assert (found[1]["architecture"], found[1]["parameters"], found[1]["context_length"]) == ("unknown", 0, None)


def test_nobody_else_finds_or_uses_a_projects_models(service: Any, tuned: dict[str, str]) -> None:
    for name in ("model", "checkpoint", "checkpoint_name"):
        with pytest.raises(NotFound):
            tuned_models.get(service.ctx, "proj_other", tuned[name])
        with service.ctx.db.read() as session, pytest.raises(NotFound):
            tuned_models.resolve(service.ctx, session, "proj_other", tuned[name])
        with pytest.raises(NotFound):
            tuned_models.delete(service.ctx, "proj_other", tuned[name])
    with service.http() as http:
        assert http.get(f"/v1/models/{tuned['model']}").status_code == 200
