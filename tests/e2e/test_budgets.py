"""Judge tokens through the whole service: a trainer asks a judge on loopback, and the tokens it tells of are usage,
pause the job beyond the project's quota and beyond its own budget, and go on counting after it was resumed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cli.ports import free_port
from cli.stack import Stack
from tests.e2e.conftest import SETTINGS, Running
from tests.jobs.receivers import receiver
from tests.rewards.servers import computing, verdict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MODELS = Path(__file__).parents[2] / "examples" / "models"
TOKENS_A_VERDICT = 10
SAMPLES_A_STEP = 8
TOKENS_A_STEP = TOKENS_A_VERDICT * SAMPLES_A_STEP
JUDGED = {
    "type": "score_model", "name": "judged", "model": "critic",
    "input": [{"role": "user", "content": "How good is {{ sample.output_text }}?"}],
}  # fmt: skip
LIMITS = "/organization/projects/proj_default/limits"


def judgement(request: Any) -> bytes:
    """Depends on what is judged, so that there is something to learn."""
    return verdict(sum(request["messages"][-1]["content"].encode()) % 10 / 10)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("home")
    with receiver(computing(judgement)) as judge:
        given = {"base_url": f"http://127.0.0.1:{judge.port}/v1", "allow_private": True, "timeout_seconds": 60}
        env = SETTINGS | {"BGPO_MODEL_ROOT": str(MODELS), "BGPO_JUDGES": json.dumps({"critic": given})}
        with Stack(home, port=free_port(), env=env | {"BGPO_RECONCILE_S": "0.2"}) as stack:
            yield Running(stack.url, home)
            stack.check()


@pytest.fixture
def http(service: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=f"{service.url}/v1", trust_env=False, timeout=60) as client:
        yield client


def create(http: httpx2.Client, folder: Path, steps: int, **rl: Any) -> str:
    rows = folder / "rows.jsonl"
    command = [sys.executable, "-m", "bgpo.tasks", "sudoku", "--split", "train", "--rows", "16", "--out", str(rows)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    file_id = http.post(
        "/files", data={"purpose": "fine-tune"}, files={"file": ("rows.jsonl", rows.read_bytes())}
    ).json()["id"]
    hyperparameters = {
        "max_steps": steps, "batch_size": 2, "group_size": 4, "mc_samples": 1, "learning_rate": 1e-4,
        "max_completion_length": 17, "block_length": 17, "diffusion_steps": 1,
    }  # fmt: skip
    block = {"grader": JUDGED, "hyperparameters": hyperparameters}
    body = {
        "model": "tiny-llada", "training_file": file_id, "seed": 3, "rl": rl,
        "method": {"type": "reinforcement", "reinforcement": block},
    }  # fmt: skip
    response = http.post("/fine_tuning/jobs", json=body)
    assert response.status_code == 200, response.text
    job_id: str = response.json()["id"]
    return job_id


def until(http: httpx2.Client, job_id: str, *statuses: str) -> dict[str, Any]:
    deadline = time.monotonic() + 240
    while True:
        job: dict[str, Any] = http.get(f"/fine_tuning/jobs/{job_id}").json()
        if job["status"] in statuses:
            return job
        assert job["status"] not in ("succeeded", "failed", "cancelled"), job
        assert time.monotonic() < deadline, job
        time.sleep(0.1)


def used(http: httpx2.Client, job_id: str) -> int:
    jobs = {each["job"]: each["judge_tokens"] for each in http.get("/usage").json()["jobs"]}
    tokens: int = jobs.get(job_id, 0)
    return tokens


def quota(http: httpx2.Client) -> int:
    tokens: int = http.get("/quota").json()["quotas"]["judge_tokens_per_month"]["used"]
    return tokens


def told(http: httpx2.Client, job_id: str) -> int:
    """By the job's metrics."""
    points = http.get(f"/fine_tuning/jobs/{job_id}/metrics").json()["data"]
    values = [value for point in points for name, value in point["values"].items() if name.startswith("judge_tokens/")]
    return int(sum(values))


def test_the_projects_quota_pauses_a_job_and_a_higher_one_lets_it_go_on(http: httpx2.Client, tmp_path: Path) -> None:
    before = quota(http)
    job_id = create(http, tmp_path, 400)
    deadline = time.monotonic() + 240
    while not used(http, job_id):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    http.put(LIMITS, json={"judge_tokens_per_month": 1}).raise_for_status()
    job = until(http, job_id, "paused")
    assert job["rl"]["pause_reason"]["code"] == "budget_exceeded"
    assert "of its 1 judge tokens of this month" in job["rl"]["pause_reason"]["message"]
    step = job["rl"]["step"]
    assert 0 < step < 400
    assert used(http, job_id) == told(http, job_id) == step * TOKENS_A_STEP
    tried = 3 * TOKENS_A_VERDICT  # on the first rows, when the job was made
    assert quota(http) == before + step * TOKENS_A_STEP + tried
    (checkpoint, *_) = http.get(f"/fine_tuning/jobs/{job_id}/checkpoints").json()["data"]
    assert checkpoint["step_number"] == step
    assert http.post(f"/fine_tuning/jobs/{job_id}/resume").status_code == 429
    http.put(LIMITS, json={}).raise_for_status()
    http.post(f"/fine_tuning/jobs/{job_id}/resume").raise_for_status()
    deadline = time.monotonic() + 240
    while used(http, job_id) <= step * TOKENS_A_STEP:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    http.post(f"/fine_tuning/jobs/{job_id}/cancel").raise_for_status()


def test_a_job_stops_at_its_own_budget(http: httpx2.Client, tmp_path: Path) -> None:
    limit = 2 * TOKENS_A_STEP
    job_id = create(http, tmp_path, 400, budget={"judge_tokens": limit, "on_exceed": "stop"})
    job = until(http, job_id, "succeeded")
    assert job["rl"]["stop_reason"] == "budget_exceeded"
    assert 2 <= job["rl"]["step"] < 400
    assert used(http, job_id) == told(http, job_id) >= limit
    assert http.get(f"/models/{job['fine_tuned_model']}").status_code == 200
