"""Compare a tuned model with its base: the service lets both answer the same held-out puzzles and grades them, and the
comparison is paired, puzzle by puzzle.

    python examples/evaluate_base_against_tuned.py --base-url http://127.0.0.1:8000/v1

A paired comparison tells smaller differences apart than two averages: how hard a puzzle is cancels out.
"""

from __future__ import annotations

import math
import time
from statistics import fmean, stdev
from typing import Any

from helpers import ANSWER, IMITATION, MODEL, OVER, connect, puzzles, require, upload, wait
from openai import OpenAI

GRADER: Any = {"type": "sudoku", "name": "sudoku", "reward": "mixed"}
ANSWERS = 2
"""To each puzzle."""


def main() -> None:
    client = connect(__doc__)
    shown = upload(client, puzzles("train", 2048, "--demonstrations"), "shown.jsonl")
    held_out = upload(client, puzzles("test", 96), "held_out.jsonl")
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": IMITATION}}
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=shown, method=method, seed=7)
    print(f"{job.id} tunes {MODEL}")
    job = wait(client, job.id)
    require(job.status == "succeeded", f"the job has {job.status}: {job.error}")

    base, tuned = (evaluate(client, str(model), held_out) for model in (MODEL, job.fine_tuned_model))
    gains = [after - before for before, after in zip(base, tuned, strict=True)]
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    mean, half = fmean(gains), 1.96 * stdev(gains) / math.sqrt(len(gains))
    print(f"gain {mean:+.3f}, 95 % interval {mean - half:+.3f} to {mean + half:+.3f}")
    print(f"better on {better} puzzles, worse on {worse}: p = {sign_test(better, worse):.2g}")
    require(mean - half > 0, "the tuned model is not better than its base")


def evaluate(client: OpenAI, model: str, file: str) -> list[float]:
    """The mean reward of the model's sampled answers to each row of the file."""
    body = {"model": model, "file": file, "grader": GRADER, "sampler": ANSWER, "answers": ANSWERS, "seed": 7}
    run: Any = client.post("/fine_tuning/evaluations", body=body, cast_to=object)
    url = f"/fine_tuning/evaluations/{run['id']}"
    while run["status"] not in OVER:
        time.sleep(0.5)
        run = client.get(url, cast_to=object)
    require(run["status"] == "succeeded", f"the evaluation has {run['status']}: {run['error']}")
    score = run["results"]["sampled"]
    print(f"{model}: mean reward {score['mean']:.3f} +- {score['stderr']:.3f}, solved {score['pass_rate']:.0%}")
    rewards: list[float] = []
    page: Any = {"has_more": True, "last_id": None}
    while page["has_more"]:
        after = f"&after={page['last_id']}" if page["last_id"] else ""
        page = client.get(f"{url}/samples?decoding=sampled&limit=100{after}", cast_to=object)
        rewards += [sample["reward"] for sample in page["data"]]
    return [fmean(rewards[first : first + ANSWERS]) for first in range(0, len(rewards), ANSWERS)]


def sign_test(better: int, worse: int) -> float:
    """Two-sided p-value of so uneven a split, were both directions equally likely."""
    n, k = better + worse, max(better, worse)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n)


if __name__ == "__main__":
    main()
