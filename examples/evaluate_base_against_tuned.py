"""Compare a tuned model with its base: both answer the same held-out puzzles over chat completions, one grader scores
both, and the comparison is paired, puzzle by puzzle.

    python examples/evaluate_base_against_tuned.py --base-url http://127.0.0.1:8000/v1

A paired comparison tells smaller differences apart than two averages: how hard a puzzle is cancels out.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean, stdev
from typing import Any

from helpers import ANSWER, IMITATION, MODEL, connect, puzzles, require, upload, wait
from openai import OpenAI

GRADER: Any = {"type": "sudoku", "name": "sudoku", "reward": "mixed"}
SAMPLER = {"diffusion": {"block_length": ANSWER["block_length"], "steps": ANSWER["diffusion_steps"]}}


def main() -> None:
    client = connect(__doc__)
    shown = upload(client, puzzles("train", 2048, "--demonstrations"), "shown.jsonl")
    held_out = puzzles("test", 96)
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": IMITATION}}
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=shown, method=method, seed=7)
    print(f"{job.id} tunes {MODEL}")
    job = wait(client, job.id)
    require(job.status == "succeeded", f"the job has {job.status}: {job.error}")

    base, tuned = (rewards(client, str(model), held_out) for model in (MODEL, job.fine_tuned_model))
    gains = [after - before for before, after in zip(base, tuned, strict=True)]
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    mean, half = fmean(gains), 1.96 * stdev(gains) / math.sqrt(len(gains))
    print(f"mean reward of {len(gains)} held-out puzzles:")
    print(f"  base   {fmean(base):.3f}")
    print(f"  tuned  {fmean(tuned):.3f}")
    print(f"  gain   {mean:+.3f}, 95 % interval {mean - half:+.3f} to {mean + half:+.3f}")
    print(f"  better on {better} puzzles, worse on {worse}: p = {sign_test(better, worse):.2g}")
    require(mean - half > 0, "the tuned model is not better than its base")


def rewards(client: OpenAI, model: str, rows: list[dict[str, Any]]) -> list[float]:
    """What the grader gives for the model's answer to each row."""

    def answer(row: dict[str, Any]) -> str:
        got = client.chat.completions.create(
            model=model, messages=row["messages"], max_tokens=ANSWER["max_completion_length"], extra_body=SAMPLER
        )
        return got.choices[0].message.content or ""

    with ThreadPoolExecutor(8) as pool:  # requests that come together are decoded together
        answers = list(pool.map(answer, rows))
    print(f"{model} answers {rows[0]['puzzle']} with {answers[0]}")
    samples = [{"model_sample": text, "item": row} for text, row in zip(answers, rows, strict=True)]
    run: Any = client.post(
        "/fine_tuning/graders/run_batch", body={"grader": GRADER, "samples": samples}, cast_to=object
    )
    return [graded["reward"] for graded in run["data"]]


def sign_test(better: int, worse: int) -> float:
    """Two-sided p-value of so uneven a split, were both directions equally likely."""
    n, k = better + worse, max(better, worse)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n)


if __name__ == "__main__":
    main()
