"""Reinforcement learning with a reward of your own: a Python function, run in the service's sandbox.

    python examples/rl_python_grader.py --base-url http://127.0.0.1:8000/v1

Tries the function on two answers first, trains the shipped model with it, and shows how the reward on held-out puzzles
has moved.
"""

from __future__ import annotations

from typing import Any

from helpers import LEARNING, MODEL, connect, puzzles, require, series, upload, wait

GRADE = """
def grade(sample, item):
    answer, solution = sample["output_text"].strip(), item["solution"]
    if len(answer) != len(solution):
        return 0.0
    right = sum(a == b for a, b in zip(answer, solution))
    return 1.0 if right == len(solution) else 0.5 * right / len(solution)
"""
STEPS: dict[str, Any] = {"max_steps": 8, "eval_interval": 4}


def main() -> None:
    client = connect(__doc__)
    grader: Any = {"type": "python", "name": "cells", "source": GRADE}
    train, held_out = puzzles("train", 1024), puzzles("test", 128)

    solution = held_out[0]["solution"]
    for answer in (solution, "4" * len(solution)):
        ran = client.fine_tuning.alpha.graders.run(grader=grader, model_sample=answer, item=held_out[0])
        print(f"{answer} is worth {ran.reward:.3f}")
    require(ran.reward < 0.5, "sixteen fours are no solution")

    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=upload(client, train, "train.jsonl"),
        validation_file=upload(client, held_out, "held_out.jsonl"),
        method={"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": LEARNING | STEPS}},
        seed=7,
    )
    print(f"{job.id} trains {MODEL}")
    job = wait(client, job.id)
    require(job.status == "succeeded", f"the job has {job.status}: {job.error}")

    print(f"{job.fine_tuned_model}: mean reward on {len(held_out)} held-out puzzles")
    rewards = series(client, job.id, "validation", "sampled_reward_mean")
    for step, reward in rewards:
        print(f"  step {step:3}: {reward:.3f} {'#' * round(50 * reward)}")
    require(rewards[-1][1] > rewards[0][1] + 0.03, "the reward has not risen")


if __name__ == "__main__":
    main()
