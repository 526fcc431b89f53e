"""What an evaluation gains by grading a batch while it samples the next one.

    python -m benchmarks.evaluation_overlap [--rows 256] [--batch 64] [--ms 5] [--json PATH]

A tiny random model, and a grader that waits as one does that asks a server. Sampling and grading are first timed alone;
`together` is the evaluation as a run does it, and `saved` the share of their sum that it does not take.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import _report
from bgpo.models import load_policy
from bgpo.models.scratch import create_checkpoint
from bgpo.rewards import Grade, Grader, Sample
from bgpo.spec import Recipe
from bgpo.training.data import Row
from bgpo.training.evaluation import answer
from bgpo.training.grading import Grading

_ROLLOUT = {"max_completion_length": 32, "block_length": 8, "diffusion_steps": 16}


class Waiting(Grader):
    """Takes its time and no processor."""

    name, type = "waiting", "endpoint"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        time.sleep(self._seconds)
        return Grade(float(len(sample.output_text) % 2), solved=False)


def main() -> None:
    """Measure and report."""
    parser = _report.argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--ms", type=float, default=5.0, help="milliseconds to grade a sample")
    arguments = parser.parse_args()
    row = measure(arguments.rows, arguments.batch, arguments.ms / 1000)
    _report.report("Grading beside sampling in an evaluation", [row], arguments.json)


def measure(rows: int, batch: int, seconds: float) -> dict[str, str | float | int]:
    """Seconds of an evaluation and of its two halves."""
    grader = {"type": "length", "name": "unused", "minimum": 1}
    method = {"type": "reinforcement", "grader": grader, "rollout": _ROLLOUT}
    recipe = Recipe.model_validate({"method": method, "evaluation": {"batch_size": batch}})
    with tempfile.TemporaryDirectory() as folder:
        create_checkpoint(Path(folder), seed=7, d_model=64, n_layers=2, n_heads=2, mlp_hidden_size=96)
        policy = load_policy(folder)
    item = {"messages": [{"role": "user", "content": "?"}]}
    prompts = [Row(item, policy.encode_prompt(item["messages"]), []) for _ in range(rows)]

    def timed(wait: float) -> float:
        begin = time.perf_counter()
        answer(policy, prompts, recipe, Grading(Waiting(wait), recipe.grading))
        return time.perf_counter() - begin

    timed(0)
    sampling, grading, together = timed(0), 2 * rows * seconds, timed(seconds)
    return {
        "rows": rows,
        "batch": batch,
        "ms_per_grade": 1000 * seconds,
        "sampling_s": round(sampling, 2),
        "grading_s": round(grading, 2),
        "together_s": round(together, 2),
        "saved": round(1 - together / (sampling + grading), 2),
    }


if __name__ == "__main__":
    main()
