"""The gradient study of Figure 3: how far one gradient estimate lies from its limit, by method and n_t.

    python -m benchmarks.paper.gradients SPEC.json      (started by `python -m benchmarks.paper run`)

On fixed graded responses every method's gradient is estimated many times, each with masks of its own. With g_m the
estimates, G the gold (bgpo with a large n_t, other masks) and |.| the Euclidean norm over all parameters:

    std  = sqrt(tr Cov(g_m)) / |G|
    bias = |mean_m g_m - G| / |G|, which the finite number of estimates alone lifts to `noise_floor`;
    bias_beyond_noise = sqrt(max(bias^2 - noise_floor^2, 0))

A method whose gradient has another length by construction (a token mean instead of a sum) is first scaled so that its
mean is as long as the gold: what remains is direction. `on-policy`: the policy is the rollout policy. `off-policy`: it
is an optimizer step further, taken on other prompts; `bias_to_ratio` then compares with the limit of the ELBO-ratio
objective, for which the paper's bound stands.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bgpo.allocator import keep_freed_memory
from bgpo.diffusion.rng import Purpose
from bgpo.models import Policy, load_policy
from bgpo.objectives import OBJECTIVES
from bgpo.rewards import compile_grader
from bgpo.spec import Recipe, Reinforcement
from bgpo.training.advantage import group_advantages
from bgpo.training.data import Row, batch_indices, load_rows
from bgpo.training.policy_gradient import accumulate_gradient
from bgpo.training.rollout import RolloutBatch, canvases_of, grade_rollouts, response_keys, roll_out
from bgpo.training.scored import draw_samples, stored_values

METHODS = ("bgpo", "elbo_ratio", "diffu_grpo")
RESCALED = ("diffu_grpo",)
"""Their gradient is a mean over tokens, not a sum."""
_GOLD_DRAWS, _RATIO_DRAWS = 1_000_000, 2_000_000
"""Numbers of mask draws: no estimate shares one with a gold."""
_STUDY_STEP, _MOST_BATCHES = 10_000, 100
"""Number of the batch that is studied, and how many are tried in turn."""


@dataclass(frozen=True)
class Fixed:
    """Graded responses and the policy that gave them."""

    batch: RolloutBatch
    advantages: Tensor
    before: Policy
    """The rollout policy."""
    on_policy: bool


@dataclass
class Moments:
    """Mean and total variance of vectors, one pass."""

    count: int = 0
    total: Tensor | None = None
    squares: float = 0.0

    def add(self, vector: Tensor) -> None:
        """One more vector."""
        self.count += 1
        self.total = vector.double() if self.total is None else self.total + vector.double()
        self.squares += float(vector.double().square().sum())

    @property
    def mean(self) -> Tensor:
        assert self.total is not None
        return self.total / self.count

    @property
    def variance(self) -> float:
        """Trace of the covariance, unbiased."""
        return max(self.squares - self.count * float(self.mean.square().sum()), 0.0) / (self.count - 1)


def main() -> None:
    """Run the study that a file describes, print the result."""
    torch.set_num_threads(1)
    keep_freed_memory()
    sys.stdout.write(json.dumps(study(json.loads(Path(sys.argv[1]).read_bytes()))) + "\n")


def study(spec: dict[str, Any]) -> dict[str, Any]:
    """All methods and n_t on one set of responses."""
    recipe = Recipe.model_validate_json(json.dumps(spec["recipe"]))
    method = recipe.method
    assert isinstance(method, Reinforcement)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if spec["device"] == "auto" else spec["device"]
    policy = load_policy(spec["model"], device=device)
    before = load_policy(spec["model"], device=device)
    rows = load_rows(spec["data"], policy, method.rollout.max_completion_length, answers=False, param="data")
    method = method.model_copy(update={"batch_size": spec["prompts"], "group_size": spec["group_size"]})
    _drift(policy, rows, method, recipe.seed, spec["drift_steps"])
    fixed = _respond(before, rows, method, recipe.seed, _STUDY_STEP, on_policy=spec["drift_steps"] == 0)

    def moments(algorithm: str, n_t: int, draws: int, first: int) -> Moments:
        found = Moments()
        for draw in range(first, first + draws):
            found.add(gradient(policy, fixed, _with(method, algorithm, n_t), recipe.seed, draw))
        return found

    gold = moments("bgpo", spec["gold_n_t"], spec["gold_draws"], _GOLD_DRAWS)
    ratio = gold if fixed.on_policy else moments("elbo_ratio", spec["gold_n_t"], spec["gold_draws"], _RATIO_DRAWS)
    length = float(gold.mean.norm())
    found_rows: list[dict[str, Any]] = []
    for algorithm in METHODS:
        single = OBJECTIVES[algorithm].fully_masked
        for n_t in (1,) if single else spec["n_t"]:
            # A single pass is cheap and noisy: as many of them as the largest n_t has samples in all.
            estimates = moments(algorithm, n_t, spec["draws"] * (max(spec["n_t"]) if single else 1), 0)
            found_rows.append({"algorithm": algorithm, "n_t": n_t, **_compare(algorithm, estimates, gold, ratio)})
    return {
        "rows": found_rows,
        "responses_with_signal": int((fixed.advantages != 0).sum()),
        "gold_norm": length,
        "gold_to_ratio": float((gold.mean - ratio.mean).norm()) / length,
    }


def gradient(policy: Policy, fixed: Fixed, method: Reinforcement, seed: int, draw: int) -> Tensor:
    """One estimate as one vector on the CPU; `draw` names its masks."""
    chosen = [r for r, advantage in enumerate(fixed.advantages.tolist()) if advantage != 0]
    keys = response_keys(seed, Purpose.ELBO, draw, range(len(fixed.batch.rows)), method.group_size, policy.device)
    canvases = canvases_of(policy, fixed.batch, chosen, method.group_size)
    scored = draw_samples(canvases, fixed.advantages[chosen].to(policy.device), keys[chosen], method)
    old = None if fixed.on_policy else stored_values(fixed.before, scored, method)
    policy.model.zero_grad(set_to_none=True)
    accumulate_gradient(policy, scored, method, fixed.advantages.numel(), old)
    parts = [p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]
    return torch.cat(parts).cpu()


def _respond(
    policy: Policy, rows: list[Row], method: Reinforcement, seed: int, first_step: int, *, on_policy: bool
) -> Fixed:
    """Roll out until a batch carries signal."""
    grader = compile_grader(method.grader)
    for step in range(first_step, first_step + _MOST_BATCHES):
        picked = batch_indices(seed, len(rows), method.batch_size, step)
        batch = roll_out(policy, [rows[i] for i in picked], method, seed, step)
        grades = grade_rollouts(batch, grader, method.group_size)
        rewards = torch.tensor([grade.score for grade in grades]).view(-1, method.group_size)
        advantages, _ = group_advantages(rewards, torch.ones_like(rewards, dtype=torch.bool), method.advantage)
        if bool((advantages != 0).any()):
            return Fixed(batch, advantages.flatten(), policy, on_policy)
    raise SystemExit(f"none of {_MOST_BATCHES} batches carried any signal: there is no gradient to study")


def _drift(policy: Policy, rows: list[Row], method: Reinforcement, seed: int, steps: int) -> None:
    """Train the policy some steps, on prompts of their own, at the rate of a run's first step."""
    rate = method.optimizer.learning_rate / max(method.optimizer.warmup_steps, 1)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        fixed = _respond(policy, rows, method, seed, step * _MOST_BATCHES, on_policy=True)
        gradient(policy, fixed, _with(method, "bgpo", 8), seed, step)
        optimizer.step()


def _with(method: Reinforcement, algorithm: str, n_t: int) -> Reinforcement:
    return method.model_copy(update={"algorithm": algorithm, "mc_samples": n_t})


def _compare(algorithm: str, estimates: Moments, gold: Moments, ratio: Moments) -> dict[str, float]:
    length = float(gold.mean.norm())
    scale = length / float(estimates.mean.norm()) if algorithm in RESCALED else 1.0
    variance = estimates.variance * scale**2
    noise = math.sqrt(variance / estimates.count + gold.variance / gold.count) / length
    bias = float((estimates.mean * scale - gold.mean).norm()) / length
    numbers = {
        "std": math.sqrt(variance) / length,
        "bias": bias,
        "noise_floor": noise,
        "bias_beyond_noise": math.sqrt(max(bias**2 - noise**2, 0.0)),
        "bias_to_ratio": float((estimates.mean * scale - ratio.mean).norm()) / length,
        "cosine": float(torch.dot(estimates.mean, gold.mean)) / (float(estimates.mean.norm()) * length),
    }
    return {name: round(value, 5) for name, value in numbers.items()}


if __name__ == "__main__":
    main()
