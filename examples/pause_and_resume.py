"""Pause a job, resume it, and see that it changed nothing: the result is the same as without the pause, bit for bit.

    python examples/pause_and_resume.py --base-url http://127.0.0.1:8000/v1

A second job with the same seed runs through; rewards of every step and hashes of the weights are compared. They agree
on one kind of hardware; on CPUs trainers must use as many threads both times (`BGPO_TRAINER_THREADS=1`).
"""

from __future__ import annotations

import time
from typing import Any

from helpers import LEARNING, MODEL, connect, puzzles, require, series, upload, wait
from openai import OpenAI

STEPS = 6
GRADER: Any = {"type": "sudoku", "name": "sudoku", "reward": "mixed"}
SMALL: Any = LEARNING | {"max_steps": STEPS, "batch_size": 8, "group_size": 4}


def main() -> None:
    client = connect(__doc__)
    train = upload(client, puzzles("train", 256), "train.jsonl")
    paused = create(client, train)
    print(f"{paused} is paused and resumed")
    reach(client, paused, 2)
    client.fine_tuning.jobs.pause(paused)  # says running until a checkpoint is stored
    require(wait(client, paused, "paused").status == "paused", "the job was over before it could pause")
    checkpoint = next(iter(client.fine_tuning.jobs.checkpoints.list(paused)))
    print(f"  it stands at step {checkpoint.step_number}, in checkpoint {checkpoint.id}; its accelerator is free")
    client.fine_tuning.jobs.resume(paused)
    require(wait(client, paused).status == "succeeded", "the resumed job has not succeeded")

    through = create(client, train)
    print(f"{through} runs through")
    require(wait(client, through).status == "succeeded", "the other job has not succeeded")

    rewards = [series(client, job, "train", "reward_mean") for job in (paused, through)]
    print("mean reward of each step:")
    for (step, one), (_, other) in zip(*rewards, strict=True):
        print(f"  step {step}: {one:.6f} paused, {other:.6f} through")
    require(len(rewards[0]) == STEPS, f"{len(rewards[0])} steps instead of {STEPS}")
    require(rewards[0] == rewards[1], "the rewards differ")
    require(weights(client, paused) == weights(client, through), "the weights differ")
    print("the weights are the same, bit for bit")


def create(client: OpenAI, train: str) -> str:
    """A job; the same one every time."""
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": SMALL}}
    return client.fine_tuning.jobs.create(model=MODEL, training_file=train, method=method, seed=7).id


def reach(client: OpenAI, job_id: str, step: int) -> None:
    """Return when the job has done so many steps."""
    while True:
        job: Any = client.fine_tuning.jobs.retrieve(job_id)
        require(job.status in ("queued", "running"), f"the job has {job.status}: {job.error}")
        if job.rl["step"] >= step:
            return
        time.sleep(0.1)


def weights(client: OpenAI, job_id: str) -> dict[str, str]:
    """Hashes of the files of the job's model."""
    checkpoint = next(iter(client.fine_tuning.jobs.checkpoints.list(job_id)))
    manifest: Any = client.get(f"/fine_tuning/checkpoints/{checkpoint.id}/files", cast_to=object)
    return {file["path"]: file["sha256"] for file in manifest["data"] if file["kind"] == "weights"}


if __name__ == "__main__":
    main()
