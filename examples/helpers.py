"""What the example scripts share: arguments, Sudokus from the project's own generator, waiting for a job.

The shipped model answers 4 x 4 Sudokus: a prompt of 16 digits with 0 for the empty cells, an answer of 16 digits.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from openai import OpenAI

MODEL = "tiny-llada"
ANSWER: dict[str, Any] = {"max_completion_length": 17, "block_length": 17, "diffusion_steps": 9}
"""A grid and the end token in one block, two tokens a step."""
LEARNING: dict[str, Any] = {
    "batch_size": 16, "group_size": 8, "mc_samples": 2, "learning_rate": 1.5e-4, "warmup_steps": 3, **ANSWER,
}  # fmt: skip
"""Hyperparameters of reinforcement that suit this model."""
IMITATION: dict[str, Any] = {
    "max_steps": 40, "batch_size": 32, "learning_rate": 3e-4, "warmup_steps": 5,
    "max_completion_length": ANSWER["max_completion_length"],
}  # fmt: skip
"""... and of supervised fine-tuning."""
OVER = ("succeeded", "failed", "cancelled")


def connect(description: str | None) -> OpenAI:
    """The client, from the script's arguments."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1", help="of the service, with /v1")
    parser.add_argument("--api-key", default="any", help="a service that runs without keys takes any")
    given = parser.parse_args()
    return OpenAI(base_url=given.base_url, api_key=given.api_key)


def puzzles(split: str, rows: int, *options: str) -> list[dict[str, Any]]:
    """Rows of a dataset. The splits `train` and `test` have no grid in common."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        command = [sys.executable, "-m", "bgpo.tasks", "sudoku", "--split", split, "--rows", str(rows), *options]
        subprocess.run([*command, "--out", str(path)], check=True, stdout=subprocess.DEVNULL)
        return [json.loads(line) for line in path.read_text().splitlines()]


def upload(client: OpenAI, rows: list[dict[str, Any]], name: str) -> str:
    """The id of a file with these rows."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return client.files.create(file=(name, content), purpose="fine-tune").id


def wait(client: OpenAI, job_id: str, *until: str) -> Any:
    """The job when it has one of these statuses, or is over; prints its progress."""
    shown = None
    while True:
        job: Any = client.fine_tuning.jobs.retrieve(job_id)
        line = f"  {job.status}: step {job.rl['step']} of {job.rl['total_steps']}"
        if line != shown:
            print(line, flush=True)
            shown = line
        if job.status in (*until, *OVER):
            return job
        time.sleep(0.5)


def series(client: OpenAI, job_id: str, split: str, name: str) -> list[tuple[int, float]]:
    """A metric by step."""
    page: Any = client.get(f"/fine_tuning/jobs/{job_id}/metrics?split={split}&names={name}", cast_to=object)
    return [(point["step"], point["values"][name]) for point in page["data"] if name in point["values"]]


def require(right: bool, what: str) -> None:
    """End the script with an error unless it is so."""
    if not right:
        sys.exit(f"wrong: {what}")
