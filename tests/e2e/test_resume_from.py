"""`rl.resume_from` with real trainers: with the optimizer a job ends in the very weights the first one came to, without
it in others. The service is shared with no other module, for what it has made is compared."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cli.ports import free_port
from cli.stack import Stack
from tests.e2e.conftest import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MODELS = Path(__file__).parents[2] / "examples" / "models"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    with Stack(tmp_path_factory.mktemp("home"), port=free_port(), env=SETTINGS | {"BGPO_MODEL_ROOT": str(MODELS)}) as s:
        with httpx2.Client(base_url=f"{s.url}/v1", trust_env=False, timeout=60) as client:
            yield client
        s.check()


@pytest.fixture(scope="module")
def file_id(http: httpx2.Client) -> str:
    messages = '[{"role": "user", "content": "%d"}, {"role": "assistant", "content": "%d%d"}]'
    rows = "".join(f'{{"messages": {messages % (i, i, i)}}}\n' for i in range(10, 42))
    given = {"file": ("rows.jsonl", rows.encode())}
    made: str = http.post("/files", data={"purpose": "fine-tune"}, files=given).json()["id"]
    return made


def run(http: httpx2.Client, file_id: str, steps: int, *, lora: Any, **rl: Any) -> dict[str, Any]:
    """A job, when it has succeeded."""
    hyperparameters = {
        "max_steps": steps, "batch_size": 4, "learning_rate": 1e-3, "max_completion_length": 16, "lora": lora,
    }  # fmt: skip
    body = {
        "model": "tiny-llada", "training_file": file_id, "seed": 3,
        "rl": {"checkpointing": {"every_steps": 2}, **rl},
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    }  # fmt: skip
    response = http.post("/fine_tuning/jobs", json=body)
    assert response.status_code == 200, response.text
    job: dict[str, Any] = response.json()
    deadline = time.monotonic() + 240
    while job["status"] != "succeeded":
        assert job["status"] not in ("failed", "cancelled"), job
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
        job = http.get(f"/fine_tuning/jobs/{job['id']}").json()
    return job


def checkpoints(http: httpx2.Client, job: dict[str, Any]) -> dict[int, str]:
    """By step."""
    page = http.get(f"/fine_tuning/jobs/{job['id']}/checkpoints").json()["data"]
    return {each["step_number"]: each["id"] for each in page}


def weights(http: httpx2.Client, checkpoint: str) -> dict[str, str]:
    """sha256 of each file with weights, and of the optimizer's."""
    page = http.get(f"/fine_tuning/checkpoints/{checkpoint}/files").json()["data"]
    return {each["path"]: each["sha256"] for each in page if each["path"].endswith(".safetensors")}


def first_steps(http: httpx2.Client, job: dict[str, Any]) -> int:
    points = http.get(f"/fine_tuning/jobs/{job['id']}/metrics", params={"split": "train"}).json()["data"]
    return int(min(point["step"] for point in points))


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4.0}], ids=["all", "lora"])
def test_it_goes_on_as_if_it_had_never_ended(http: httpx2.Client, file_id: str, lora: Any) -> None:
    whole = checkpoints(http, run(http, file_id, 4, lora=lora))
    half = run(http, file_id, 2, lora=lora)
    middle = checkpoints(http, half)[2]
    assert weights(http, middle) == weights(http, whole[2])
    resumed = run(http, file_id, 4, lora=lora, resume_from={"checkpoint": middle})
    assert first_steps(http, resumed) == 3
    assert weights(http, checkpoints(http, resumed)[4]) == weights(http, whole[4])
    anew = run(http, file_id, 2, lora=lora, resume_from={"checkpoint": middle, "load_optimizer": False})
    assert first_steps(http, anew) == 1
    last = weights(http, checkpoints(http, anew)[2])
    assert last["model.safetensors"] not in {weights(http, each)["model.safetensors"] for each in whole.values()}
