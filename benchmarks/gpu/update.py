"""Memory and time of the policy update by n_t, of bgpo and of elbo_ratio until it runs out of memory.

One response, one update, sequence lengths of the paper's math tasks. Cases: LoRA over a bfloat16 model; the whole model
in float32 with bfloat16 compute and Adafactor; LoRA with activation checkpointing. As in `benchmarks.policy_memory`
the masks follow a fixed schedule (all tokens, then half), so that objectives are compared and not draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu.device import allocated_bytes, device, peak_bytes, random_policy, random_tokens, release, seconds
from benchmarks.gpu.sizes import Sizes
from bgpo.diffusion.elbo import build_canvases
from bgpo.models import Policy, add_lora, set_activation_checkpointing
from bgpo.spec import LoraSpec, OptimizerSpec, Reinforcement
from bgpo.training.optimizer import Optimizer
from bgpo.training.policy_gradient import accumulate_gradient
from bgpo.training.scored import Scored

Emit = Callable[[dict[str, Any]], None]


def measure(sizes: Sizes, emit: Emit) -> None:
    """All cases; a row each."""
    for name, dtype, lora, checkpointing in (
        ("lora", torch.bfloat16, True, False),
        ("lora, checkpointing", torch.bfloat16, True, True),
        ("full, adafactor", torch.float32, False, False),
    ):
        with _rows_for_errors(name, emit):
            _case(name, sizes, dtype, lora, checkpointing, emit)
        release()


def _case(name: str, sizes: Sizes, dtype: torch.dtype, lora: bool, checkpointing: bool, emit: Emit) -> None:
    policy = random_policy(sizes, dtype)
    if lora:
        add_lora(policy, LoraSpec(rank=sizes.lora_rank, alpha=2.0 * sizes.lora_rank))
    set_activation_checkpointing(policy, checkpointing)
    spec = OptimizerSpec(optimizer_type="adamw" if lora else "adafactor", learning_rate=1e-6)
    optimizer = Optimizer(policy.model, spec, 1000)
    release()
    model_bytes = allocated_bytes()
    _update(policy, optimizer, "bgpo", sizes, min(2, max(sizes.n_t)))  # warms up: libraries, optimizer state
    for objective in ("bgpo", "elbo_ratio"):
        for n_t in sizes.n_t:
            row: dict[str, Any] = {"case": name, "objective": objective, "n_t": n_t, "model_bytes": model_bytes}
            release()
            try:
                row |= _update(policy, optimizer, objective, sizes, n_t)
            except torch.OutOfMemoryError:
                optimizer.discard_gradients()
                emit(row | {"error": "out of memory"})
                break
            emit(row)


def _update(policy: Policy, optimizer: Optimizer, objective: str, sizes: Sizes, n_t: int) -> dict[str, Any]:
    """One update: peak memory, seconds of the gradient and of the optimizer, gradient norm."""
    method = Reinforcement.model_validate(
        {
            "algorithm": objective,
            "grader": {"type": "sudoku", "name": "unused"},
            "mc_samples": n_t,
            "micro_batch": 1,
        }
    )
    scored = _scored(policy, sizes, n_t)
    norms: list[float] = []

    def gradient() -> None:
        with torch.autocast(device().type, dtype=torch.bfloat16):
            accumulate_gradient(policy, scored, method, 1)

    loss_seconds = seconds(gradient)
    peak = peak_bytes()
    optimizer_seconds = seconds(lambda: norms.append(optimizer.step()))
    return {
        "peak_bytes": peak,
        "peak_bytes_with_optimizer": peak_bytes(),
        "seconds_loss": round(loss_seconds, 4),
        "seconds_per_sample": round(loss_seconds / n_t, 4),
        "seconds_optimizer": round(optimizer_seconds, 4),
        "grad_norm": float(f"{norms[0]:.5g}"),
    }


def _scored(policy: Policy, sizes: Sizes, n_t: int) -> Scored:
    canvases = build_canvases(
        [random_tokens(sizes, sizes.prompt, 1)], [random_tokens(sizes, sizes.response, 2)], policy.end_ids[0], device()
    )
    counts = torch.tensor([sizes.response if j % 2 == 0 else sizes.response // 2 for j in range(n_t)])
    masks = (torch.arange(sizes.response) < counts[:, None])[None]
    weights = (sizes.response / counts)[None]
    advantage = torch.tensor([1.0], device=device())
    return Scored(canvases, advantage, masks.to(device()), weights.to(device()))


@contextmanager
def _rows_for_errors(case: str, emit: Emit) -> Iterator[None]:
    """A case that cannot be measured is a row, and the next one goes on."""
    try:
        yield
    except Exception as error:  # the boundary of a case: whatever it is must not take the others with it
        emit(
            {
                "case": case,
                "error": f"{type(error).__name__}: {str(error)[:300]}",
                "failed": "out of memory" not in str(error),
            }
        )
