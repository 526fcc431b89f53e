"""Reward definitions through the whole service: a tenant's Python and programs of the model run in the sandbox, and
what they give is what the job learns from. The shipped model solves half of these puzzles: some rewards are high."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from cli.ports import free_port
from cli.stack import Stack
from tests.e2e.conftest import SETTINGS, Running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MODELS = Path(__file__).parents[2] / "examples" / "models"
RIGHT_ROWS = """
import re
import numpy as np

SECRETS = ["/etc/passwd", "{home}/bgpo.db", "{home}"]

def blocked():
    import os, socket
    for path in SECRETS:
        try:
            os.stat(path)
            return False
        except OSError:
            pass
    try:
        socket.create_connection(("127.0.0.1", {port}), timeout=2)
        return False
    except OSError:
        return not any(name.startswith("BGPO") for name in os.environ)

def grade(sample, item):
    if not blocked():
        raise RuntimeError("the wall does not hold")
    digits = re.sub(r"[^0-9]", "", sample["output_text"])
    wanted = item["solution"]
    return np.mean([digits[i : i + 4] == wanted[i : i + 4] for i in range(0, 16, 4)])
"""
SOMETIMES_RAISES = """
import zlib

def grade(sample, item):
    text = sample["output_text"]
    if zlib.crc32((text + item["puzzle"]).encode()) % 10 < 3:
        raise ValueError(f"cannot grade {text!r}")
    return float(text.strip() == item["solution"])
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("home")
    with Stack(home, port=free_port(), env=SETTINGS | {"BGPO_MODEL_ROOT": str(MODELS)}) as stack:
        yield Running(stack.url, home)
        stack.check()


@pytest.fixture
def client(service: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sudokus, each with a test for every row of the grid."""
    folder = tmp_path_factory.mktemp("rows")
    plain, tested = folder / "plain.jsonl", folder / "tested.jsonl"
    command = [sys.executable, "-m", "bgpo.tasks", "sudoku", "--split", "train", "--rows", "64", "--out", str(plain)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with tested.open("w") as out:
        for row in map(json.loads, plain.read_text().splitlines()):
            lines = [row["solution"][i : i + 4] for i in range(0, 16, 4)]
            row["tests"] = [f"assert line({i}) == {text!r}" for i, text in enumerate(lines)]
            out.write(json.dumps(row) + "\n")
    return tested


def run(client: openai.OpenAI, rows: Path, grader: dict[str, Any], **rl: Any) -> Any:
    """A job of three steps, when it is over."""
    training_file = client.files.create(file=rows, purpose="fine-tune").id
    hyperparameters = {
        "max_steps": 3,
        "batch_size": 8,
        "group_size": 4,
        "mc_samples": 1,
        "learning_rate": 1e-4,
        "max_completion_length": 17,
        "block_length": 17,
        "diffusion_steps": 9,
    }
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": hyperparameters}}
    extra = {"rl": {"sample_log": 8, **rl}}
    job: Any = client.fine_tuning.jobs.create(
        model="tiny-llada", training_file=training_file, seed=3, method=method, extra_body=extra
    )
    deadline = time.monotonic() + 300
    while (job := client.fine_tuning.jobs.retrieve(job.id)).status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    return job


def train_metrics(client: openai.OpenAI, job_id: str) -> list[dict[str, float]]:
    page: Any = client.get(f"/fine_tuning/jobs/{job_id}/metrics?split=train", cast_to=object)
    return [point["values"] for point in page["data"]]


def check_rewards(client: openai.OpenAI, job_id: str, rows: Path) -> None:
    """The logged rewards are the shares of right rows, counted here; they are what the metrics say."""
    solutions = {row["puzzle"]: row["solution"] for row in map(json.loads, rows.read_text().splitlines())}
    page: Any = client.get(f"/fine_tuning/jobs/{job_id}/samples?limit=100", cast_to=object)
    assert len(page["data"]) == 24
    for sample in page["data"]:
        (puzzle,) = (puzzle for puzzle in solutions if puzzle in sample["prompt"])
        digits, wanted = re.sub("[^0-9]", "", sample["completion"]), solutions[puzzle]
        share = sum(digits[i : i + 4] == wanted[i : i + 4] for i in range(0, 16, 4)) / 4
        assert sample["reward"] == share, sample
    means = [values["reward_mean"] for values in train_metrics(client, job_id)]
    assert len(means) == 3
    assert all(0.3 < mean < 1.0 for mean in means), "the model solves some and not all"


def test_a_job_with_a_python_grader(service: Running, client: openai.OpenAI, rows: Path) -> None:
    port = service.url.rpartition(":")[2]
    source = RIGHT_ROWS.replace("{home}", str(service.home)).replace("{port}", port)
    job = run(client, rows, {"type": "python", "source": source})
    assert (job.status, job.error) == ("succeeded", None)
    check_rewards(client, job.id, rows)
    assert all(values["grader_errors"] == 0 for values in train_metrics(client, job.id))
    events = [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100).data]
    assert any("first 3 rows" in text for text in events), "the dry run tells what it saw"


def test_a_job_with_a_code_grader(client: openai.OpenAI, rows: Path) -> None:
    program = "grid = '''{{ sample.output_text }}'''\ndef line(i):\n    return grid.strip()[4 * i : 4 * i + 4]\n"
    job = run(client, rows, {"type": "code", "name": "tests", "input": program, "reward": "fraction"})
    assert (job.status, job.error) == ("succeeded", None)
    check_rewards(client, job.id, rows)


def test_a_grader_that_raises_on_some_samples(client: openai.OpenAI, rows: Path) -> None:
    grader = {"type": "python", "name": "moody", "source": SOMETIMES_RAISES}
    job = run(client, rows, grader, max_error_rate=0.9)
    assert (job.status, job.error) == ("succeeded", None)
    values = train_metrics(client, job.id)
    rate = sum(value["grader_errors"] for value in values) / (3 * 8 * 4)
    assert 0.1 < rate < 0.55, "three in ten, of 96"
    assert [value["grader_error_rate"] for value in values] == [value["grader_errors"] / 32 for value in values]
    kind = "grader_errors/moody/python_grader_runtime_error"
    assert [value.get(kind, 0) for value in values] == [value["grader_errors"] for value in values]
    warnings = [e for e in client.fine_tuning.jobs.list_events(job.id, limit=100).data if e.level == "warn"]
    assert any("moody" in event.message and "ValueError: cannot grade" in str(event.data) for event in warnings)

    failed = run(client, rows, grader, max_error_rate=0.05)
    assert (failed.status, failed.error.code) == ("failed", "grader_error")
    assert "moody" in failed.error.message
    assert "ValueError: cannot grade" in failed.error.message
    assert "line 7, in grade" in failed.rl["failure"]["log_tail"]
