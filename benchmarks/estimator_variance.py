"""Gradient variance and bias of every ELBO estimator at equal compute, on the tasks' own responses.

    python -m benchmarks.estimator_variance [--model DIR] [--json PATH] [--n-t 4 16]

The model answers training prompts of Sudoku and Countdown at temperature 1, as in a rollout; each answer's ELBO is then
estimated again and again from n_t masked canvases, and the gradient with respect to all weights is compared:

* `gradient_variance`: tr Var(gradient) / |gradient|^2, both summed over the responses;
* `ratio`: to `bernoulli`, the paper's form, at the same n_t; `ratio_error` is one standard deviation, from a bootstrap
  over repetitions (the responses are given);
* `bias_sq`: |mean gradient - gold|^2 / |gradient|^2 beside `noise_floor`, what an unbiased estimator would show. Gold
  is `exact_count` with `--gold` canvases a response, in parts of 32;
* `value_ratio`: Var(ELBO estimate), to `bernoulli`'s.

One thread, deterministic up to floating-point summation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from benchmarks import _report
from bgpo.allocator import keep_freed_memory
from bgpo.diffusion.elbo import Canvases, build_canvases, elbo_terms_of
from bgpo.diffusion.estimators import ESTIMATORS
from bgpo.diffusion.masking import draw_masks
from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.diffusion.sampler import sample
from bgpo.models import Policy, load_policy
from bgpo.spec import EstimatorName, RolloutSpec
from bgpo.tasks import countdown, sudoku

MODEL = Path(__file__).parent.parent / "examples" / "models" / "tiny-llada"
TASKS: Final[dict[str, ModuleType]] = {"sudoku": sudoku, "countdown": countdown}
ROLLOUT = RolloutSpec(max_completion_length=17, block_length=17, diffusion_steps=9)
GOLD_PART = 32
_GOLD = len(ESTIMATORS)
"""Where the streams of the gold gradient stand beside the estimators'."""


@dataclass(frozen=True)
class Repetitions:
    """What R repetitions of one estimate gave for one response."""

    mean: Tensor
    """Mean gradient (weights,)."""
    deviations: np.ndarray[Any, np.dtype[np.float64]]
    """|gradient - mean|^2 * R / (R - 1) of each: their mean estimates tr Var without bias."""
    values: np.ndarray[Any, np.dtype[np.float64]]
    """The ELBO estimates."""

    @property
    def variance_of_mean(self) -> float:
        return float(self.deviations.mean()) / len(self.deviations)


def repetitions(gradients: Sequence[Tensor], values: list[float]) -> Repetitions:
    """Summarize R gradients (weights,). R is at least 2. One after the other: stacked they are hundreds of MB."""
    mean = torch.zeros_like(gradients[0])
    for gradient in gradients:
        mean += gradient / len(gradients)
    squares = np.array([float((gradient - mean).square().sum(dtype=torch.float64)) for gradient in gradients])
    return Repetitions(mean, squares * len(squares) / (len(squares) - 1), np.array(values))


def main() -> None:
    """Measure every task, n_t and estimator, report."""
    parser = _report.argument_parser(__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint directory")
    parser.add_argument("--n-t", type=int, nargs="+", default=[4, 16], help="canvases of one estimate")
    parser.add_argument("--responses", type=int, default=6, help="responses of each task")
    parser.add_argument("--canvases", type=int, default=192, help="canvases for each response, n_t and estimator")
    parser.add_argument("--gold", type=int, default=512, help="canvases of a response's gold gradient")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.canvases < 2 * max(arguments.n_t) or arguments.gold < 2 * GOLD_PART:
        parser.error(f"--canvases must be at least twice the largest --n-t, and --gold at least {2 * GOLD_PART}")
    torch.set_num_threads(1)
    keep_freed_memory()
    policy = load_policy(arguments.model)
    rows: list[dict[str, Any]] = []
    for number, task in enumerate(TASKS):
        measured = _measure(policy, number, task, arguments)
        for n_t in arguments.n_t:
            rows += compare(task, n_t, {name: measured[name, n_t] for name in ESTIMATORS}, measured["gold", 0])
    _report.report("Variance and bias of ELBO estimators at equal compute", rows, arguments.json)


def _measure(policy: Policy, number: int, task: str, arguments: Any) -> dict[tuple[str, int], list[Repetitions]]:
    """For each estimator and n_t, and under ("gold", 0), one `Repetitions` a response."""
    prompts = [
        policy.encode_prompt(row["messages"])
        for row in TASKS[task].generate(arguments.responses, arguments.seed, "train")
    ]
    keys = stream_keys(arguments.seed, Purpose.ROLLOUT, number, torch.arange(len(prompts)))
    answers = sample(policy, prompts, ROLLOUT, keys, temperature=1.0).responses()
    found: dict[tuple[str, int], list[Repetitions]] = {("gold", 0): []}
    for response, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        canvases = build_canvases([prompt], [answer], policy.end_ids[0], "cpu")
        key = stream_keys(arguments.seed, Purpose.ELBO, number, response)
        parts = arguments.gold // GOLD_PART
        found["gold", 0].append(_repeat(policy, canvases, "exact_count", GOLD_PART, parts, key, _GOLD))
        for place, name in enumerate(ESTIMATORS):
            for n_t in arguments.n_t:
                repeated = _repeat(policy, canvases, name, n_t, arguments.canvases // n_t, key, place)
                found.setdefault((name, n_t), []).append(repeated)
    return found


def _repeat(
    policy: Policy, canvases: Canvases, estimator: EstimatorName, n_t: int, repeats: int, key: Tensor, place: int
) -> Repetitions:
    """Gradients of the ELBO estimate of one response, each from n_t canvases of its own."""
    weights = list(policy.model.parameters())
    gradients, values = [], []
    for repeat in range(repeats):
        own = stream_keys(int(key), Purpose.ELBO, place, n_t, repeat).view(1)
        masks, factors = draw_masks(own, canvases.lengths_B, canvases.response_length, n_t, estimator)
        several = canvases.select(torch.zeros(n_t, dtype=torch.int64))
        estimate = elbo_terms_of(policy, several, masks[0], factors[0]).mean()
        parts = torch.autograd.grad(estimate, weights)
        gradients.append(torch.cat([part.flatten() for part in parts]))
        values.append(float(estimate.detach()))
    return repetitions(gradients, values)


def compare(
    task: str, n_t: int, measured: dict[EstimatorName, list[Repetitions]], gold: list[Repetitions]
) -> list[dict[str, Any]]:
    """A row for each estimator. Every list holds one entry a response."""
    # |gold|^2 holds the variance of gold on top of the gradient's own square.
    size = sum(float(g.mean.double().square().sum()) - g.variance_of_mean for g in gold)
    baseline = measured["bernoulli"]
    rows = []
    for name, responses in measured.items():
        variance = total_variance(responses)
        pairs = list(zip(responses, gold, strict=True))
        rows.append(
            {
                "task": task,
                "n_t": n_t,
                "estimator": name,
                "gradient_variance": round(variance / size, 4),
                "ratio": round(variance / total_variance(baseline), 3),
                "ratio_error": None if name == "bernoulli" else round(ratio_error(responses, baseline), 3),
                "bias_sq": round(sum(float((r.mean - g.mean).double().square().sum()) for r, g in pairs) / size, 6),
                "noise_floor": round(sum(r.variance_of_mean + g.variance_of_mean for r, g in pairs) / size, 6),
                "value_ratio": round(_value_variance(responses) / _value_variance(baseline), 3),
            }
        )
    return rows


def total_variance(responses: list[Repetitions]) -> float:
    """tr Var(gradient), summed over responses."""
    return sum(float(r.deviations.mean()) for r in responses)


def ratio_error(responses: list[Repetitions], baseline: list[Repetitions], resamples: int = 1000) -> float:
    """Bootstrap standard deviation of the ratio of total variances, repetitions redrawn within each response."""
    rng = np.random.default_rng(0)

    def resampled(of: list[Repetitions]) -> np.ndarray[Any, np.dtype[np.float64]]:
        totals = np.zeros(resamples)
        for r in of:
            totals += rng.choice(r.deviations, (resamples, len(r.deviations))).mean(-1)
        return totals

    return float((resampled(responses) / resampled(baseline)).std())


def _value_variance(responses: list[Repetitions]) -> float:
    return float(sum(r.values.var(ddof=1) for r in responses))


if __name__ == "__main__":
    main()
