"""Supervised fine-tuning first, then reinforcement learning from its checkpoint: `model` of the second job is the
`fine_tuned_model` of the first.

    python examples/sft_then_rl.py --base-url http://127.0.0.1:8000/v1

Both jobs are measured with the same grader on the same held-out puzzles.
"""

from __future__ import annotations

from typing import Any

from helpers import ANSWER, IMITATION, LEARNING, MODEL, connect, puzzles, require, series, upload, wait

GRADER: Any = {"type": "sudoku", "name": "sudoku", "reward": "mixed"}
PRACTICE: dict[str, Any] = LEARNING | {"max_steps": 5, "batch_size": 8}


def main() -> None:
    client = connect(__doc__)
    shown = upload(client, puzzles("train", 2048, "--demonstrations"), "shown.jsonl")
    asked = upload(client, puzzles("train", 512, "--seed", "1"), "asked.jsonl")
    held_out = upload(client, puzzles("test", 128), "held_out.jsonl")

    first = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=shown,
        validation_file=held_out,
        method={"type": "supervised", "supervised": {"grader": GRADER, "hyperparameters": IMITATION | ANSWER}},
        suffix="sft",
        seed=7,
    )
    print(f"{first.id}: supervised, from {MODEL}")
    imitated = wait(client, first.id)
    require(imitated.status == "succeeded", f"the first job has {imitated.status}: {imitated.error}")

    second = client.fine_tuning.jobs.create(
        model=imitated.fine_tuned_model,
        training_file=asked,
        validation_file=held_out,
        method={"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": PRACTICE}},
        suffix="rl",
        seed=7,
    )
    print(f"{second.id}: reinforcement, from {imitated.fine_tuned_model}")
    practised = wait(client, second.id)
    require(practised.status == "succeeded", f"the second job has {practised.status}: {practised.error}")

    lineage = [entry["job"] for entry in practised.rl["base"]["lineage"]]
    require(lineage == [first.id], f"the second model descends from {lineage}")
    sft, rl = (series(client, job, "validation", "sampled_solved_rate") for job in (first.id, second.id))
    print("solved of the held-out puzzles:")
    for name, share in (
        ("base", sft[0][1]),
        ("after SFT", sft[-1][1]),
        ("RL begins at", rl[0][1]),
        ("after RL", rl[-1][1]),
    ):
        print(f"  {name:12} {share:6.1%}")
    require(rl[0][1] > sft[0][1] + 0.05, "the second job did not begin where the first ended")
    require(rl[-1][1] > sft[0][1] + 0.05, "the two jobs have taught the model nothing")


if __name__ == "__main__":
    main()
