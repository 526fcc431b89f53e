"""The whole service by the unmodified `openai` client: a job goes in, a model that measures the same comes out."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest

from tests.e2e.conftest import Running

pytestmark = pytest.mark.timeout(300)  # many processes that import PyTorch, perhaps on few cores
JobBody = Callable[..., dict[str, Any]]

# What a user would write: load the downloaded folder and evaluate it with the library alone.
REPRODUCE = """
import json, sys
from pathlib import Path
import torch, bgpo
from bgpo.evaluate import read_recipe
from bgpo.training.data import load_rows
from bgpo.training.evaluation import evaluate
torch.set_num_threads(1)
folder, data = Path(sys.argv[1]), sys.argv[2]
recipe = read_recipe(folder / "trainer_state" / "recipe.json")
policy = bgpo.load_policy(folder)
rows = load_rows(data, policy, recipe.method.rollout.max_completion_length, answers=False, param="data")
print(json.dumps(evaluate(policy, rows, recipe)))
"""


@pytest.fixture
def client(service: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def create(client: openai.OpenAI, puzzles: tuple[Path, Path], job_body: JobBody, **options: int) -> str:
    train, held_out = (client.files.create(file=path, purpose="fine-tune").id for path in puzzles)
    body = job_body(train, held_out, **options)
    extra = {"rl": body.pop("rl")}
    return client.fine_tuning.jobs.create(**body, extra_body=extra).id


def wait_until_over(client: openai.OpenAI, job_id: str, timeout: float = 90) -> Any:
    deadline = time.monotonic() + timeout
    while (job := client.fine_tuning.jobs.retrieve(job_id)).status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    return job


def download(client: openai.OpenAI, checkpoint_id: str, folder: Path) -> None:
    url = f"{client.base_url}fine_tuning/checkpoints/{checkpoint_id}/files"
    with httpx2.Client(trust_env=False, headers={"Authorization": "Bearer any"}) as http:
        for file in http.get(url).json()["data"]:
            path = folder / file["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(http.get(f"{url}/{file['path']}").content)
            assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]


def weights_sha256(client: openai.OpenAI, job_id: str) -> str:
    newest = client.fine_tuning.jobs.checkpoints.list(job_id).data[0]
    files: Any = client.get(f"/fine_tuning/checkpoints/{newest.id}/files", cast_to=object)
    (sha256,) = (file["sha256"] for file in files["data"] if file["path"] == "model.safetensors")
    return str(sha256)


def metrics(client: openai.OpenAI, job_id: str) -> list[dict[str, Any]]:
    page: Any = client.get(f"/fine_tuning/jobs/{job_id}/metrics", cast_to=object)
    points: list[dict[str, Any]] = page["data"]
    return points


def test_from_upload_to_a_model_that_measures_the_same(
    client: openai.OpenAI, puzzles: tuple[Path, Path], job_body: JobBody, tmp_path: Path
) -> None:
    job_id = create(client, puzzles, job_body)
    job = wait_until_over(client, job_id)
    assert (job.status, job.error) == ("succeeded", None)
    assert job.fine_tuned_model.startswith("ft:tiny:")

    # A random model wins no reward, which the trainer warns of.
    events = list(reversed(client.fine_tuning.jobs.list_events(job_id, limit=100).data))
    told = [event.message for event in events if event.level == "info"]
    lifecycle = [text for text in told if not text.startswith(("Step ", "Grader "))]
    assert [text.split(":")[0] for text in lifecycle] == [
        "Created fine-tuning job",
        "Validating training file",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
        "Checkpoint created at step 2",
        "Checkpoint created at step 4",
        "Checkpoint created at step 6",
        "New fine-tuned model created",
        "The job has successfully completed",
    ]
    assert [c.step_number for c in client.fine_tuning.jobs.checkpoints.list(job_id)] == [6, 4, 2]

    points = metrics(client, job_id)
    assert [point["step"] for point in points if point["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [point["step"] for point in points if point["split"] == "validation"] == [0, 2, 4, 6]
    last = {name: value for name, value in points[-1]["values"].items() if not name.startswith("seconds_")}

    folder = tmp_path / "downloaded"
    download(client, client.fine_tuning.jobs.checkpoints.list(job_id).data[0].id, folder)
    state = json.loads((folder / "trainer_state" / "state.json").read_bytes())
    (folder / "trainer_state" / "recipe.json").write_text(json.dumps(state["recipe"]))
    command = [sys.executable, "-c", REPRODUCE, str(folder), str(puzzles[1])]
    again = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert again == last


@pytest.mark.slow
def test_a_killed_trainer_changes_nothing_about_the_result(
    service: Running, client: openai.OpenAI, puzzles: tuple[Path, Path], job_body: JobBody
) -> None:
    undisturbed = create(client, puzzles, job_body, steps=30, every=10)
    assert wait_until_over(client, undisturbed).status == "succeeded"

    job_id = create(client, puzzles, job_body, steps=30, every=10)
    deadline = time.monotonic() + 60
    while not client.fine_tuning.jobs.checkpoints.list(job_id).data:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    trainer = service.trainer(job_id)
    assert trainer is not None, "it finished before we could kill it"
    trainer.send_signal(signal.SIGKILL)
    job = wait_until_over(client, job_id)

    assert (job.status, job.rl["attempt"]) == ("succeeded", 2)
    events = [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=100).data]
    assert any("the trainer was killed by SIGKILL" in text for text in events)
    steps = [point["step"] for point in metrics(client, job_id) if point["split"] == "train"]
    assert steps == list(range(1, 31))
    assert weights_sha256(client, job_id) == weights_sha256(client, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("service", ["embedded"], indirect=True)
def test_a_retried_job_comes_to_what_the_first_would_have(
    client: openai.OpenAI, puzzles: tuple[Path, Path], job_body: JobBody
) -> None:
    source = create(client, puzzles, job_body, steps=12, every=4)
    deadline = time.monotonic() + 90
    while not client.fine_tuning.jobs.checkpoints.list(source).data:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert client.fine_tuning.jobs.cancel(source).status == "cancelled"
    retried: Any = client.post(f"/fine_tuning/jobs/{source}/retry", cast_to=object)
    cloned: Any = client.post(f"/fine_tuning/jobs/{source}/clone", cast_to=object)
    reached = retried["rl"]["step"]
    assert reached in (4, 8)
    for job in (retried, cloned):
        assert wait_until_over(client, job["id"], timeout=150).status == "succeeded"
    steps = [point["step"] for point in metrics(client, retried["id"]) if point["split"] == "train"]
    assert steps == list(range(reached + 1, 13))
    assert weights_sha256(client, retried["id"]) == weights_sha256(client, cloned["id"])


def pairs(path: Path, count: int) -> Path:
    """Right answers preferred to wrong ones."""
    with path.open("w") as file:
        for i in range(count):
            answers = {"preferred_output": str(i % 4), "non_preferred_output": "abcd"[i % 4]}
            row = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
            question = {"messages": [{"role": "user", "content": f"{i} % 4"}]}
            file.write(json.dumps({"input": question, **row, "answer": str(i % 4)}) + "\n")
    return path


@pytest.mark.parametrize("service", ["embedded"], indirect=True)
def test_a_preference_job(client: openai.OpenAI, tmp_path: Path) -> None:
    train, held_out = (
        client.files.create(file=pairs(tmp_path / name, count), purpose="fine-tune").id
        for name, count in (("train.jsonl", 16), ("held_out.jsonl", 10))
    )
    hyperparameters: Any = {
        "beta": 0.1, "batch_size": 4, "learning_rate_multiplier": "auto", "n_epochs": 2, "mc_samples": 2,
        "max_completion_length": 4, "eval_interval": 1, "lora": {"rank": 2},
    }  # fmt: skip
    # At the rate of 5e-7 nothing improves by 1 nat: it ends after two evaluations without that.
    extra = {"rl": {"early_stopping": {"patience": 2, "min_delta": 1.0}}}
    job_id = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=train,
        validation_file=held_out,
        method={"type": "dpo", "dpo": {"hyperparameters": hyperparameters}},
        seed=5,
        extra_body=extra,
    ).id
    job = wait_until_over(client, job_id)
    assert (job.status, job.error) == ("succeeded", None)
    assert job.method.dpo.hyperparameters.beta == 0.1
    assert (job.rl["stop_reason"], job.rl["step"], job.rl["total_steps"]) == ("early_stopping", 2, 8)

    points = metrics(client, job_id)
    first = next(point["values"] for point in points if point["split"] == "train")
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert {"accuracy", "margin", "reward_chosen", "reward_rejected", "elbo_mean", "grad_norm"} <= set(first)
    assert [(point["step"], "loss" in point["values"]) for point in points if point["split"] == "validation"] == [
        (0, True), (1, True), (2, True),
    ]  # fmt: skip
    newest = client.fine_tuning.jobs.checkpoints.list(job_id).data[0]
    assert newest.step_number == 2
    files: Any = client.get(f"/fine_tuning/checkpoints/{newest.id}/files", cast_to=object)
    kinds = {file["path"]: file["kind"] for file in files["data"]}
    assert kinds["adapter/adapter_model.safetensors"] == "adapter"
    assert kinds["model.safetensors"] == "weights"


def test_cancel_ends_the_trainer(
    service: Running, client: openai.OpenAI, puzzles: tuple[Path, Path], job_body: JobBody
) -> None:
    job_id = create(client, puzzles, job_body, steps=5000, every=1000)
    deadline = time.monotonic() + 60
    while client.fine_tuning.jobs.retrieve(job_id).rl["step"] < 1:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    trainer = service.trainer(job_id)
    assert trainer is not None
    cancelled = client.fine_tuning.jobs.cancel(job_id)
    assert (cancelled.status, cancelled.fine_tuned_model) == ("cancelled", None)
    psutil.wait_procs([trainer], timeout=20)
    assert not trainer.is_running()
    # The worker is free again.
    assert wait_until_over(client, create(client, puzzles, job_body)).status == "succeeded"


def test_bad_input_is_said_clearly_and_the_service_goes_on(
    client: openai.OpenAI, puzzles: tuple[Path, Path], job_body: JobBody, tmp_path: Path
) -> None:
    malformed, empty = tmp_path / "malformed.jsonl", tmp_path / "empty.jsonl"
    lines = puzzles[0].read_text().splitlines(keepends=True)
    malformed.write_text("".join([*lines[:2], '{"messages": [\n', *lines[3:]]))
    empty.touch()
    with pytest.raises(openai.BadRequestError, match=r"(?i)line 3"):
        client.files.create(file=malformed, purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="empty"):
        client.files.create(file=empty, purpose="fine-tune")
    train, held_out = (client.files.create(file=path, purpose="fine-tune").id for path in puzzles)
    body = job_body(train, held_out)
    extra = {"rl": body.pop("rl")}
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        client.fine_tuning.jobs.create(**(body | {"model": "no-such-model"}), extra_body=extra)
    body["method"]["reinforcement"]["hyperparameters"]["learning_rat"] = 1
    with pytest.raises(openai.BadRequestError, match="learning_rat") as caught:
        client.fine_tuning.jobs.create(**body, extra_body=extra)
    assert caught.value.code == "unknown_parameter"
    assert client.models.list().data[0].id == "tiny"
