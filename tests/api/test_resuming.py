"""`rl.resume_from` over HTTP: what the job is made of, and which checkpoints it refuses. With a trainer: tests/e2e."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from jobs.repositories import checkpoints
from jobs.repositories.jobs import Claim
from tests.service import Service

URL = "/v1/fine_tuning/jobs"
PARAM = "rl.resume_from.checkpoint"


@pytest.fixture
def service(start_service: Callable[..., Service], database_url: str) -> Service:
    """A service on each database."""
    return start_service(database_url=database_url)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint's files."""
    made = tmp_path / "made"
    (made / "trainer_state").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(b"weights")
    (made / "trainer_state" / "state.json").write_text("{}")
    return made


def method(service: Service, **hyperparameters: Any) -> dict[str, Any]:
    given: dict[str, Any] = service.body()["method"]
    given["reinforcement"]["hyperparameters"] |= hyperparameters
    return given


def made_by(service: Service, folder: Path, step: int = 5, **changes: Any) -> tuple[Claim, str]:
    """A running job, and its checkpoint."""
    claim = service.claim(service.create(**changes)["id"])
    return claim, service.checkpoint(claim, step, folder)


def ask(service: Service, checkpoint: str, path: str = "", **changes: Any) -> httpx2.Response:
    load = {} if changes.pop("load_optimizer", True) else {"load_optimizer": False}
    rl = {"resume_from": {"checkpoint": checkpoint, **load}}
    file_id = service.upload(service.rows()).json()["id"]
    with service.http() as http:
        return http.post(f"{URL}{path}", json=service.body(training_file=file_id, rl=rl, **changes))


def error_of(response: httpx2.Response, status: int = 400) -> tuple[str, str]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    return error["code"], error["param"]


def test_with_the_optimizer_it_goes_on_at_the_checkpoint(service: Service, folder: Path) -> None:
    claim, checkpoint = made_by(service, folder)
    job = ask(service, checkpoint, method=method(service, learning_rate=1e-4, max_steps=6)).json()
    assert job["rl"]["resume_from"] == {"checkpoint": checkpoint, "load_optimizer": True}
    assert (job["rl"]["step"], job["rl"]["total_steps"]) == (5, 6)
    assert job["rl"]["base"] == {"model": "tiny", "checkpoint": None, "lineage": []}
    taken = service.claim(job["id"])
    assert (taken.resume_checkpoint_id, taken.start_checkpoint_id, taken.last_step) == (checkpoint, None, 5)
    url = f"/v1/fine_tuning/checkpoints/{checkpoint}"
    with service.http() as http:
        told = [event["message"] for event in http.get(f"{URL}/{job['id']}/events").json()["data"]]
        assert f"Goes on from the checkpoint {checkpoint} of step 5" in told
        http.post(f"{URL}/{claim.job_id}/cancel")
        service.finish(claim, "cancelled")
        assert error_of(http.delete(url))[0] == "checkpoint_in_use"
        again = http.post(f"{URL}/{job['id']}/clone").json()
        assert again["rl"]["resume_from"]["checkpoint"] == checkpoint
        assert service.claim(again["id"]).resume_checkpoint_id == checkpoint


def test_the_weights_alone_are_those_of_a_model(service: Service, folder: Path) -> None:
    _, checkpoint = made_by(service, folder, step=30)
    job = ask(service, checkpoint, load_optimizer=False, method=method(service, lora={"rank": 2})).json()
    assert job["rl"]["resume_from"] == {"checkpoint": checkpoint, "load_optimizer": False}
    assert (job["model"], job["rl"]["step"]) == ("tiny", 0)
    assert job["rl"]["base"]["checkpoint"] == checkpoint
    assert [each["checkpoint"] for each in job["rl"]["base"]["lineage"]] == [checkpoint]
    taken = service.claim(job["id"])
    assert (taken.resume_checkpoint_id, taken.start_checkpoint_id) == (None, checkpoint)


def test_what_the_other_job_started_from_comes_along(service: Service, folder: Path) -> None:
    _, first = made_by(service, folder)
    name = checkpoint_name(service, first)
    _, second = made_by(service, folder, model=name)
    assert error_of(ask(service, second)) == ("invalid_checkpoint", "model")
    job = ask(service, checkpoint_name(service, second), model=name).json()
    assert (job["rl"]["base"]["checkpoint"], job["rl"]["base"]["model"]) == (first, "tiny")
    assert [each["model"] for each in job["rl"]["base"]["lineage"]] == [name]
    taken = service.claim(job["id"])
    assert (taken.resume_checkpoint_id, taken.start_checkpoint_id) == (second, first)
    adapters = method(service, lora={"checkpoints": "adapter"})
    refused = ask(service, second, model=name, load_optimizer=False, method=adapters)
    assert error_of(refused)[1].endswith("lora.checkpoints")


@pytest.mark.parametrize(
    ("made", "asked", "part"),
    [
        ({"step": 20}, {}, "ask for more steps"),
        ({}, {"max_steps": 5}, "ask for more steps"),
        ({"lora": {"rank": 4}}, {}, "lora must be the same"),
        ({"lora": {"rank": 4}}, {"lora": {"rank": 8}}, "lora must be the same"),
        ({}, {"optimizer_type": "adafactor"}, "optimizer_type is adamw, not adafactor"),
    ],
)
def test_what_does_not_fit(
    service: Service, folder: Path, made: dict[str, Any], asked: dict[str, Any], part: str
) -> None:
    given = {name: value for name, value in made.items() if name != "step"}
    _, checkpoint = made_by(service, folder, made.get("step", 5), method=method(service, **given))
    wanted = method(service, **asked)
    refused = ask(service, checkpoint, method=wanted)
    assert error_of(refused) == ("incompatible_checkpoint", PARAM)
    assert part in refused.json()["error"]["message"]
    report = ask(service, checkpoint, "/validate", method=wanted).json()
    assert [(each["code"], each["param"]) for each in report["problems"]] == [("incompatible_checkpoint", PARAM)]
    assert ask(service, checkpoint, load_optimizer=False, method=wanted).status_code == 200


def test_what_differs_and_fits(service: Service, folder: Path) -> None:
    lora = {"rank": 4, "checkpoints": "adapter"}
    _, checkpoint = made_by(service, folder, method=method(service, lora=lora))
    wanted = method(service, lora={"rank": 4}, kl_coefficient=0.1)
    assert ask(service, checkpoint, "/validate", method=wanted).json()["valid"]
    assert ask(service, checkpoint, "/estimate", method=wanted).status_code == 200
    assert ask(service, checkpoint, method=wanted).status_code == 200


def test_another_methods_state_does_not_fit(service: Service, folder: Path) -> None:
    _, checkpoint = made_by(service, folder)
    file_id = service.upload(service.rows(answered=True)).json()["id"]
    supervised = {"type": "supervised", "supervised": {"hyperparameters": {"max_steps": 20}}}
    body = {"model": "tiny", "method": supervised, "training_file": file_id}
    with service.http() as http:
        for load, status in ((True, 400), (False, 200)):
            rl = {"resume_from": {"checkpoint": checkpoint, "load_optimizer": load}}
            response = http.post(URL, json=body | {"rl": rl})
            assert response.status_code == status, response.text


def test_checkpoints_that_cannot_be_used(service: Service, folder: Path) -> None:
    claim, checkpoint = made_by(service, folder)
    for name in ("ftckpt_none", "tiny", f"{checkpoint}x", "ft:\x01"):
        assert error_of(ask(service, name)) == ("invalid_checkpoint", PARAM), name
        report = ask(service, name, "/validate").json()
        assert [each["param"] for each in report["problems"]] == [PARAM]
    assert error_of(ask(service, checkpoint, model="other")) == ("invalid_checkpoint", "model")
    assert error_of(ask(service, "")) == ("invalid_value", PARAM)
    (folder / "trainer_state" / "state.json").unlink()
    (folder / "trainer_state").rmdir()
    bare = service.checkpoint(claim, 6, folder)
    refused = ask(service, bare)
    assert error_of(refused) == ("incompatible_checkpoint", PARAM)
    assert "no optimizer state" in refused.json()["error"]["message"]
    with service.ctx.db.transaction() as session:
        checkpoints.mark_damaged(session, checkpoint)
    for load in (True, False):
        assert error_of(ask(service, checkpoint, load_optimizer=load)) == ("checkpoint_damaged", PARAM)


def checkpoint_name(service: Service, checkpoint_id: str) -> str:
    with service.http() as http:
        name: str = http.get(f"/v1/fine_tuning/checkpoints/{checkpoint_id}").json()["fine_tuned_model_checkpoint"]
    return name
